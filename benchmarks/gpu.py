"""LLaVA-1.5-7B's real shape with dummy weights on a GPU: ``python -m benchmarks.gpu``.

Tokens/s at 1, 8 and 64 streams, and images/s, through this server. The weights are vLLM's dummies
(``load_format=dummy``): nothing is downloaded, what is answered means nothing, and the work is that of the real model.
Where there is no GPU it says so and measures nothing.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Failed, checked
from benchmarks.images import Images
from benchmarks.load import read_answer, send
from benchmarks.machine import describe
from benchmarks.servers import Contestant, Server, our_command, serving
from benchmarks.workloads import image_body, text_body
from llava_api.cli.flags import DEMO, demo_folder

Json = dict[str, Any]
NO_GPU = (
    "No GPU here (torch.cuda.is_available() is false): nothing was measured. benchmarks/gpu.py wants an NVIDIA GPU "
    "with 20 GB of memory and the CUDA build of vLLM."
)
VOCABULARY = 32_064
IMAGE_TOKEN, PAD_TOKEN = 32_000, 32_001
"""As in the hub's copy; what follows up to VOCABULARY has no text there either."""
SMALL_FILES = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja")
STREAMS = (1, 8, 64)
IMAGE_SIZES = ((336, 336), (1024, 768))


def config_7b(layers: int, vision_layers: int) -> Json:
    """config.json of llava-hf/llava-1.5-7b-hf."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN,
        "image_seq_length": 576,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": PAD_TOKEN,
            "tie_word_embeddings": False,
        },
    }


def make_folder(target: Path, layers: int, vision_layers: int) -> Path:
    """A checkpoint folder without weights."""
    demo = demo_folder() / DEMO
    target.mkdir()
    for name in SMALL_FILES:
        shutil.copy(demo / name, target)
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    # Every number that the model may answer needs a text, or its token would not be sent.
    known |= {f"▁w{number}": number for number in range(len(known), IMAGE_TOKEN)}
    for token in tokenizer["added_tokens"]:
        token["id"] = {"<image>": IMAGE_TOKEN, "<pad>": PAD_TOKEN}.get(token["content"], token["id"])
    images = json.loads((demo / "preprocessor_config.json").read_text())
    images |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = json.loads((demo / "processor_config.json").read_text()) | {"patch_size": 14}
    for name, content in {
        "config.json": config_7b(layers, vision_layers),
        "tokenizer.json": tokenizer,
        "preprocessor_config.json": images,
        "processor_config.json": processor,
    }.items():
        (target / name).write_text(json.dumps(content))
    return target


def command(folder: Path, port: int, dtype: str) -> list[str]:
    """As the other benchmarks start our server, but with what a GPU is for: its own type, and CUDA graphs."""
    words = [word for word in our_command(folder, port) if word != "--enforce-eager"]
    words[words.index("--dtype") + 1] = dtype
    return [*words, "--engine-arg", "load_format=dummy"]


def run(server: Server, bodies: Sequence[bytes], streams: int, what: str) -> tuple[int, float]:
    """(tokens, seconds). Raises Failed."""
    began = time.perf_counter()
    exchanges = send(server.port, bodies, streams)
    seconds = time.perf_counter() - began
    answers = checked([read_answer(exchange, None) for exchange in exchanges], what)
    return sum(answer.completion_tokens for answer in answers), seconds


def measure(server: Server, chosen: argparse.Namespace) -> Json:
    found: Json = {"tokens_per_second": {}, "images_per_second": {}}
    number = 0
    for streams in STREAMS:
        for what in ("warm-up", "measured"):
            count = streams * (1 if what == "warm-up" else max(2, chosen.requests // streams))
            bodies = [text_body(number + index, chosen.seed, chosen.tokens) for index in range(count)]
            number += count
            tokens, seconds = run(server, bodies, streams, f"{streams} streams, {what}")
        found["tokens_per_second"][streams] = tokens / seconds
        print(f"{streams:>4} streams of text: {tokens / seconds:9.1f} tokens/s", flush=True)
    for size in IMAGE_SIZES:
        images = Images(size, chosen.seed)
        bodies = [image_body(jpeg, 1) for jpeg in images.jpegs(range(chosen.images + 64))]
        run(server, bodies[:64], 64, "warm-up")
        _, seconds = run(server, bodies[64:], 64, "images")
        found["images_per_second"]["x".join(map(str, size))] = chosen.images / seconds
        print(f"{size[0]}x{size[1]} JPEG, all different, one token each: {chosen.images / seconds:7.1f} images/s")
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--layers", type=int, default=32, help="layers of the text model")
    made.add_argument("--vision-layers", type=int, default=24)
    made.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    made.add_argument("--requests", type=int, default=64, help="text requests at each number of streams, at least")
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--dtype", default="float16")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--folder", type=Path, help="only make the checkpoint folder, here")
    made.add_argument("--anyway", action="store_true", help="run without a GPU: to try this file with few layers")
    made.add_argument("--json", type=Path)
    return made


def main() -> None:
    chosen = parser().parse_args()
    if chosen.folder is not None:
        print(make_folder(chosen.folder, chosen.layers, chosen.vision_layers))
        return
    import torch

    if not (torch.cuda.is_available() or chosen.anyway):
        print(NO_GPU)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    with tempfile.TemporaryDirectory() as name:
        folder = make_folder(Path(name) / "checkpoint", chosen.layers, chosen.vision_layers)
        contestant = Contestant("ours", partial(command, dtype=chosen.dtype), {})
        print(f"LLaVA-1.5 with {chosen.layers} layers, {chosen.dtype}, dummy weights, on {device}", flush=True)
        try:
            with serving(contestant, folder, Path(name)) as server:
                found = measure(server, chosen) | {"start_seconds": server.start_seconds}
        except Failed as error:
            sys.exit(f"FAILED: {error}")
    if chosen.json:
        results = {"machine": describe(), "device": device, "layers": chosen.layers} | found
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
