"""``llava-api inspect MODEL``: what a checkpoint is, how it would be served, and how much memory it needs."""

import argparse
import json
from typing import Any

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.files import weight_files
from llava_api.checkpoints.size import count_parameters, whole_text_config
from llava_api.cli import machine
from llava_api.cli.flags import MODEL_HELP, add_flags, find_model, read_settings
from llava_api.cli.start_checks import cpu_plan
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import Settings
from llava_api.units import readable_size


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("inspect", help="say what a checkpoint is", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP.replace(" (the default)", ""))
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser, Mark.CHECKPOINT, Mark.CHECKPOINT_OVERRIDE)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    settings = read_settings(chosen)
    model = open_model(find_model(chosen.model), (chosen.model,), settings)
    facts = describe(model, settings)
    if chosen.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):{width}}  {text_of(value)}")


def describe(model: ServedModel, settings: Settings) -> dict[str, Any]:
    checkpoint = model.checkpoint
    text, vision = whole_text_config(checkpoint), checkpoint.config.get("vision_config") or {}
    parameters = count_parameters(checkpoint)
    facts: dict[str, Any] = {
        "model": checkpoint.model,
        "format": checkpoint.format,
        **({} if checkpoint.gguf is None else {"read_as": checkpoint.gguf.assumed}),
        "architecture": str(checkpoint.vision),
        "text_model": checkpoint.text_model_type,
        "layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "vocabulary": text.get("vocab_size"),
        "vision_tower": vision.get("model_type", checkpoint.vision.tower),
        "prompt_family": model.family.name,
        "prompt_family_reason": model.family_reason,
        "image_mode": model.image_mode.name,
        "image_mode_reason": model.image_mode_reason,
        "tile_pixels": checkpoint.tile_pixels,
        "tile_tokens": checkpoint.tile_tokens,
        "image_token_id": checkpoint.image_token_id,
        "context_length": checkpoint.context_length,
        "stored_dtype": checkpoint.stored_dtype,
        "quantization": checkpoint.quantization,
        "parameters": parameters.total,
        "weights": weights_here(model),
        "memory_bytes": parameters.memory_bytes(),
    }
    if machine.torch_is_for_cuda() is False:
        facts["on_this_cpu"] = on_this_cpu(model, settings)
    return facts


def on_this_cpu(model: ServedModel, settings: Settings) -> str:
    """What a start on this machine without a GPU would choose."""
    try:
        plan = cpu_plan(model, None, settings)
    except StartupError as error:
        return str(error)
    return "not known" if plan is None else "; ".join(plan.sentences)


def weights_here(model: ServedModel) -> str:
    """The weights that the folder has."""
    try:
        pair = model.checkpoint.gguf
        files = weight_files(model.checkpoint.folder) if pair is None else [pair.text, pair.vision]
    except StartupError as error:
        return str(error)
    size = sum(file.stat().st_size for file in files)
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return f"{count}, {readable_size(size)}" if files else "none in this folder"


def text_of(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{readable_size(size)} at {name}" for name, size in value.items()) + ", KV cache on top"
    if isinstance(value, int):
        return f"{value:,}"
    return "not given" if value is None else str(value)
