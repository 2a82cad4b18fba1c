"""The training itself on the command line: its flags, its folder, and a bar while it runs."""

import argparse
import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from pydantic import ValidationError

from llava_api.chat.model import sources_of
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.claim import claimed
from llava_api.checkpoints.files import locate, read_json
from llava_api.checkpoints.inspect import Checkpoint
from llava_api.cli.bulk.progress import Counts, Shown, duration
from llava_api.cli.flags import add_flag
from llava_api.cli.fleet.models_file import flags_of
from llava_api.cli.wrong_settings import complaints
from llava_api.errors import StartupError
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.recipe import FINISHED, Recipe, recipe_for
from llava_api.finetune.samples import Samples

if TYPE_CHECKING:
    from llava_api.finetune.run import Training

NEEDED = ("torch", "transformers", "peft", "accelerate", "matplotlib")
BEGUN = "training.json"
LORA_ONLY = ("rank", "alpha", "dropout")
LOADING = ("model_base", "vision_tower", "mmproj", "revision")
"""Settings that a base needs to be loaded."""
SHOWING = ("prompt_family", "image_mode", "exif_orientation", "flatten_transparency")
"""Settings that decide what a model is shown."""


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training", "The defaults are LLaVA's published settings.")
    for name, field in Recipe.model_fields.items():
        if name != "mode":
            add_flag(group, name, field, dest=f"recipe_{name}")


def read_recipe(chosen: argparse.Namespace) -> Recipe:
    """Raises StartupError that names each wrong flag."""
    flags = {name: getattr(chosen, f"recipe_{name}", None) for name in Recipe.model_fields}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        recipe = recipe_for(chosen.mode, given)
    except ValidationError as error:
        raise StartupError("; ".join(complaints(error, given).values())) from error
    for name in LORA_ONLY:
        if name in given and recipe.mode != "lora":
            raise StartupError(f"--{name} is for --mode lora: leave it out")
    if recipe.load_4bit and recipe.mode != "lora":
        raise StartupError("--load-4bit is for --mode lora: weights in 4 bit are not trained themselves")
    return recipe


def check_output(folder: Path | None, recipe: Recipe) -> None:
    """Raises StartupError before the data is read if no training can begin or go on in ``folder``."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise StartupError(f"{missing[0]} is not installed: pip install 'llava-api[train]'")
    if recipe.load_4bit and find_spec("bitsandbytes") is None:
        raise StartupError("--load-4bit needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
    if folder is None:
        raise StartupError("--output is missing: name a folder for the results, or only check the data (--check-only)")
    if any((folder / name).exists() for name in FINISHED):
        raise StartupError(f"{folder} already has the results of a training: name another folder")
    if folder.exists() and not (folder.is_dir() and ((folder / BEGUN).is_file() or not any(folder.iterdir()))):
        raise StartupError(f"{folder} is not empty, and no training was begun there: name another folder")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other trainings out of ``folder``. Raises StartupError if one is there."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with ExitStack() as claim:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            claim.enter_context(claimed(folder.resolve(), wait=False))
        except OSError as error:
            raise cannot_begin(folder, error) from error
        yield


def cannot_begin(folder: Path, error: OSError) -> StartupError:
    return StartupError(f"cannot write to {folder} ({error.strerror}): name another folder")


def begin(folder: Path, facts: dict[str, Any]) -> None:
    """Note what is trained. Raises StartupError if the folder's training was begun with something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = read_json(folder, BEGUN)
        if not begun:
            (folder / BEGUN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return
    except OSError as error:
        raise cannot_begin(folder, error) from error
    different = [name for name in facts if begun.get(name) != facts[name]]
    if different:
        name = different[0]
        raise StartupError(
            f"the training in {folder} was begun with {name} {begun.get(name)}, not {facts[name]}: give the same "
            "again to go on, or name another folder"
        )


class Steps(Counts):
    """Counts of a training, for the bar."""

    def __init__(self, total: int, before: int) -> None:
        super().__init__(total, before)
        self.loss = 0.0
        self.tokens = 0

    def take(self, line: dict[str, Any]) -> None:
        self.done = line["step"]
        self.loss = line["loss"]
        self.tokens += line["tokens"]

    def text(self) -> str:
        if self.done == self.before:
            return "first step"
        seconds = time.monotonic() - self.started
        left = (self.total - self.done) * seconds / (self.done - self.before)
        return f"loss {self.loss:.4f}, {self.tokens / seconds:,.0f} tokens/s, {duration(left)} left"


def base_of(model: ModelInput) -> tuple[Checkpoint, Path]:
    """The checkpoint in the hub's format, converted if it is in another, and its folder. Raises StartupError."""
    if model.checkpoint.quantization is not None:
        raise StartupError(
            f"the checkpoint is quantized ({model.checkpoint.quantization}): train the one that it was made from, with "
            "--load-4bit if memory is short"
        )
    settings = model.settings
    ready = ready_checkpoint(model.checkpoint, sources_of(settings), settings.cache_dir)
    return ready, locate(ready.model, settings.download_dir, settings.revision, weights=True)


def follow(training: "Training", main: bool) -> None:
    """Take the training's steps; with a bar on the main process."""
    steps = Steps(training.order.steps, training.done)
    if main:
        print(training.plan())
    with Shown(steps) if main else nullcontext() as shown:
        for line in training.run():
            steps.take(line)
            if shown is not None:
                shown.update()


def train(
    model: ModelInput, samples: Samples, good: Sequence[int], recipe: Recipe, data_file: Path, folder: Path
) -> None:
    """Begin or go on in ``folder``, and write the results. Raises StartupError."""
    # A process that reads images is forked from this one, whose tokenizer has threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from llava_api.finetune.dataset import FinetuneDataset
    from llava_api.finetune.results import model_card, write_results
    from llava_api.finetune.run import Training, memory_advice, processes

    digest = blake3(samples.content).hexdigest()[:16]
    shown = {"prompt_family": model.family.name, "image_mode": model.mode.key()}
    facts = {**recipe.decisive(), "model": model.checkpoint.model, **shown, "data": digest, "samples": len(good)}
    with processes().main_process_first():
        begin(folder, facts)
    checkpoint, base = base_of(model)
    with memory_advice(recipe):
        training = Training(base, FinetuneDataset(samples, model, good), recipe, folder)
        main = training.accelerator.is_main_process
        follow(training, main)
    name = model.checkpoint.model
    use = serve_command(model, recipe.mode == "lora", folder)
    card = model_card(folder, name, recipe, data_file.name, len(good), use) if main else ""
    write_results(training.accelerator, training.model, base, checkpoint.model, training.dtype, folder, card)
    if main:
        print(f"trained: serve it with {use}")


def serve_command(model: ModelInput, adapter: bool, folder: Path) -> str:
    """With the flags of the training that decide what the model is shown."""
    names = (*(LOADING if adapter else ()), *SHOWING)
    chosen = model.settings.model_dump(include=set(names), exclude_defaults=True)
    base = model.checkpoint.model if adapter else str(folder)
    words = ["llava-api", "serve", base, *flags_of(chosen), *(["--lora", f"NAME={folder}"] if adapter else [])]
    return shlex.join(words)
