"""A copy of a checkpoint that never ends an answer by itself, so that every answer has the tokens asked for.

vLLM's server could be told so in the request (``ignore_eos``), this one could not, and both should get the same
requests. So the end token's row of the output layer becomes the padding token's: training pushed that row down at
every step, and of equal scores greedy decoding takes neither where any other token scores higher. No config changes.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

OUTPUT_LAYERS = ("language_model.lm_head.weight", "lm_head.weight")


def endless_copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())["text_config"]
    weights = load_file(target / "model.safetensors")
    layer = weights[next(name for name in OUTPUT_LAYERS if name in weights)]
    layer[config["eos_token_id"]] = layer[config["pad_token_id"]].clone()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
