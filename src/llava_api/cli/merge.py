"""``llava-api merge BASE ADAPTER --output FOLDER``: a checkpoint in the hub's format from a base model and its adapter.

The adapter is one of ``llava-api finetune`` or of PEFT for a LLaVA in the hub's format, or a LoRA made with LLaVA's own
training code. Its changes are added in float32 and saved in the type of the base model.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from llava_api.chat.model import sources_of
from llava_api.checkpoints.adapters import locate_adapter
from llava_api.checkpoints.files import read_json
from llava_api.checkpoints.inspect import inspect_checkpoint
from llava_api.checkpoints.original import is_original
from llava_api.cli.flags import add_flags, find_model, read_settings
from llava_api.cli.terminal import set_up_logging


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("merge", help="merge a LoRA adapter into its base model", description=__doc__)
    parser.add_argument("base", metavar="BASE", help="folder or hub id of the model that the adapter was trained on")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of the adapter")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")
    add_flags(parser, names=("download_dir", "revision", "vision_tower", "log_level"))
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    settings = read_settings(chosen)
    set_up_logging(settings.log_level)
    sources = sources_of(settings)
    folder = locate_adapter(chosen.adapter, settings.download_dir)
    # Imported only now, because torch takes seconds to import.
    from llava_api.checkpoints.convert import convert

    if is_original(read_json(folder, "config.json")):
        sources = replace(sources, model_base=chosen.base)
        convert(inspect_checkpoint(chosen.adapter, sources), sources, chosen.output)
    else:
        convert(inspect_checkpoint(find_model(chosen.base), sources), sources, chosen.output, adapter=folder)
    print(f"merged: serve it with llava-api serve {chosen.output}")
