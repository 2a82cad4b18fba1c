"""What a finished training leaves in its folder: an adapter in PEFT's format, or a checkpoint in the hub's."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llava_api.checkpoints.files import INDEXES, SMALL_FILES, read_json
from llava_api.checkpoints.shards import ShardWriter, write_json
from llava_api.finetune.curve import LOG
from llava_api.finetune.recipe import FINISHED, Recipe
from llava_api.finetune.snapshots import cannot_save
from llava_api.vision.families import classic_name


def write_results(
    accelerator: Any, model: Any, base: Path, base_name: str, dtype: torch.dtype, folder: Path, card: str
) -> None:
    """Write the trained model into ``folder``. ``base_name``: how an adapter names its base. Raises StartupError.

    ``card``: the text of README.md.
    """
    # With FSDP every process takes part.
    state = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return
    scratch = folder / ".results.partial"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        trainee = accelerator.unwrap_model(model)
        if hasattr(trainee, "peft_config"):
            trainee.peft_config["default"].base_model_name_or_path = base_name
            # "auto" would look the base up in the hub.
            trainee.save_pretrained(scratch, state_dict=state, save_embedding_layers=False)
        else:
            write_checkpoint(state, base, dtype, scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        # safetensors makes files that only their owner can read.
        mode = next(scratch.glob("*config.json")).stat().st_mode
        for file in sorted(scratch.iterdir(), key=lambda file: file.name in FINISHED):
            file.chmod(mode)
            file.replace(folder / file.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise cannot_save(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_checkpoint(state: dict[str, torch.Tensor], base: Path, dtype: torch.dtype, folder: Path) -> None:
    """The base's small files with the trained weights, in ``dtype`` and under the names that every reader knows."""
    config = read_json(base, "config.json")
    tied = config.get("tie_word_embeddings") or (config.get("text_config") or {}).get("tie_word_embeddings")
    written = ShardWriter(folder)
    for name, tensor in state.items():
        hub = classic_name(name)
        if not (tied and hub == "language_model.lm_head.weight"):
            written.add({hub: tensor.detach().to("cpu", dtype)})
    written.finish()
    for file in (file for pattern in SMALL_FILES for file in base.glob(pattern)):
        if file.name not in (*INDEXES, "manifest.json", "config.json"):
            shutil.copyfile(file, folder / file.name)
    config.pop("dtype", None)
    write_json(folder / "config.json", config | {"torch_dtype": str(dtype).removeprefix("torch.")})


def model_card(folder: Path, base_name: str, recipe: Recipe, data: str, samples: int, use: str) -> str:
    """The text of README.md, after the training's last step.

    ``data``: the name of its file; ``use``: the command that serves the result.
    """
    last = json.loads((folder / LOG).read_text(encoding="utf-8").splitlines()[-1])
    adapter = recipe.mode == "lora"
    # The hub takes only its own ids here.
    base = "" if Path(base_name).exists() else f"base_model: {base_name}\n"
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.model_dump().items())
    return f"""---
{base}{"library_name: peft" if adapter else "library_name: transformers"}
pipeline_tag: image-text-to-text
---

# {folder.name}

{Path(base_name).name}, trained by llava-api in mode {recipe.mode} on {samples:,} samples of {data}.
{last["steps"]:,} steps, the last loss {last["loss"]:.4f}: log.jsonl has all, loss.png shows them.

    {use}

| setting | value |
|---|---|
{rows}
"""
