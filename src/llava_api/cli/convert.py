"""``llava-api convert SOURCE TARGET``: convert LLaVA's original format or GGUF files to the hub's, or quantize.

``serve`` does this by itself on first use; with this command you do it earlier and choose the folder.
"""

import argparse
from pathlib import Path

from llava_api.chat.model import sources_of
from llava_api.checkpoints.inspect import inspect_checkpoint
from llava_api.checkpoints.size import PRECISIONS, stored_precision
from llava_api.cli.flags import add_flags, find_model, read_settings
from llava_api.cli.terminal import set_up_logging
from llava_api.errors import StartupError
from llava_api.setting_types import Mark


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("convert", help="convert or quantize a checkpoint", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id or GGUF file of a checkpoint")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write; it must not exist yet")
    parser.add_argument(
        "--quantize",
        choices=(*PRECISIONS, "none"),
        help="quantize the text model's linear layers, as serve --load-8bit and --load-4bit do; default: as a GGUF "
        "file is, else none",
    )
    add_flags(parser, Mark.CHECKPOINT)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    settings = read_settings(chosen)
    set_up_logging(settings.log_level)
    sources = sources_of(settings)
    target: Path = chosen.target
    if target.exists() or target.is_symlink():
        raise StartupError(f"{target} exists already: name a folder that does not")
    if target.resolve().is_relative_to(Path(chosen.source).resolve()):
        raise StartupError(f"{target} lies inside the checkpoint itself: name another place")
    checkpoint = inspect_checkpoint(find_model(chosen.source), sources)
    # Imported only now, because torch takes seconds to import.
    from llava_api.checkpoints.convert import convert

    usual = stored_precision(checkpoint) if checkpoint.gguf is not None else None
    convert(checkpoint, sources, target, None if chosen.quantize == "none" else chosen.quantize or usual)
    print(f"converted: serve it with llava-api serve {target}")
