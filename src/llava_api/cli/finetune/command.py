"""``llava-api finetune MODEL``: train a checkpoint on your own data, with the server's prompts and pixels.

The data is LLaVA's: a JSON list of ``{"id", "image", "conversations": [{"from": "human", "value"}, ...]}``.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from llava_api.chat.model import open_model
from llava_api.cli.finetune.preview import preview
from llava_api.cli.finetune.report import page
from llava_api.cli.finetune.training import add_recipe_flags, check_output, held, read_recipe, train
from llava_api.cli.flags import MODEL_HELP, add_flags, find_model, read_settings
from llava_api.cli.terminal import printable, set_up_logging
from llava_api.errors import StartupError
from llava_api.finetune.check import Report, check
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.recipe import Mode
from llava_api.finetune.samples import Samples
from llava_api.setting_types import Mark

DATA_SETTINGS = (
    *("max_model_len", "jpeg_decode", "exif_orientation", "flatten_transparency"),
    *("cache_dir", "log_level", "max_image_pixels", "max_image_side", "max_image_aspect_ratio"),
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("finetune", help="train a checkpoint on your own data", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP.replace(" (the default)", ""))
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="conversations, JSON or JSON lines")
    parser.add_argument(
        "--image-folder", type=Path, default=Path(), metavar="FOLDER", help="where the images are (here)"
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="lora",
        help="lora (the default), full, or projector: captions, no prompts",
    )
    parser.add_argument(
        "--preview",
        type=int,
        default=0,
        metavar="NUMBER",
        help="show the first NUMBER good samples, with what is learned marked",
    )
    parser.add_argument("--check-only", action="store_true", help="check the data, and do not train")
    parser.add_argument("--skip-faulty", action="store_true", help="train on the samples without faults")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for checkpoints, log and results")
    add_recipe_flags(parser)
    add_flags(parser, Mark.CHECKPOINT, Mark.CHECKPOINT_OVERRIDE, names=DATA_SETTINGS)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    recipe = read_recipe(chosen)
    if not chosen.check_only:
        check_output(chosen.output, recipe)
    if not chosen.image_folder.is_dir():
        raise StartupError(f"--image-folder {chosen.image_folder} is not a folder")
    model = open_input(chosen)
    samples = Samples.read(chosen.data, chosen.image_folder)
    report = checked(samples, model)
    if os.environ.get("RANK", "0") == "0":
        show(samples, model, report, chosen.preview)
    if chosen.check_only:
        sys.exit(1 if report.faults else 0)
    if not report.good:
        raise StartupError(f"{chosen.data} has no sample that can be learned from")
    if report.faults and not chosen.skip_faulty:
        raise StartupError(f"{chosen.data} has faults: mend them, or leave these samples out with --skip-faulty")
    with held(chosen.output):
        train(model, samples, report.good, recipe, chosen.data, chosen.output)


def show(samples: Samples, model: ModelInput, report: Report, previews: int) -> None:
    print(printable(page(report)))
    for index in report.good[: max(previews, 0)]:
        print(f"\n{preview(samples[index], model)}", end="")


def open_input(chosen: argparse.Namespace) -> ModelInput:
    """Raises StartupError."""
    settings = read_settings(chosen)
    set_up_logging(settings.log_level)
    model = open_model(find_model(chosen.model), (chosen.model,), settings)
    plain = chosen.mode == "projector"
    return ModelInput.of(model.checkpoint, model.family, model.tokenizer, model.image_mode, settings, plain)


def checked(samples: Samples, model: ModelInput) -> Report:
    """Check, with a bar on a terminal."""
    with tqdm(total=len(samples), unit=" samples", disable=None, leave=False) as bar:
        return check(samples, model, bar.update)
