"""Checkpoints in the middle of a training, from which it is resumed: ``checkpoint-STEP`` in its folder.

A checkpoint holds the trained weights and the optimizer's state, for FSDP and DeepSpeed in their own formats. It is
written under another name and renamed at the end, and older ones are removed only then.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llava_api.errors import StartupError
from llava_api.finetune.trainee import trained

NAME = re.compile(r"checkpoint-(\d+)")
WEIGHTS = "trained.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """The steps after which ``folder`` has a checkpoint, in order."""
    names = [NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name)


class Snapshots:
    def __init__(self, folder: Path, keep: int, accelerator: Any) -> None:
        self.folder = folder
        self.keep = keep
        self.accelerator = accelerator
        accelerator.register_save_state_pre_hook(self.save_trained)
        accelerator.register_load_state_pre_hook(self.load_trained)

    def save_trained(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        """Save only what is trained. ``weights`` is empty for FSDP and DeepSpeed, which have saved theirs."""
        if weights and self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(models[0])
            state = {name: parameter.detach().contiguous() for name, parameter in trained(model)}
            save_file(state, Path(output_dir) / WEIGHTS)
        weights.clear()

    def load_trained(self, models: list[Any], input_dir: str) -> None:
        if models:
            model = self.accelerator.unwrap_model(models.pop())
            found = load_file(Path(input_dir) / WEIGHTS)
            for name, parameter in trained(model):
                parameter.data.copy_(found[name])

    def save(self, step: int) -> None:
        """Raises StartupError if it cannot be written; earlier checkpoints stay."""
        scratch = self.folder / f".checkpoint-{step}.partial"
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(scratch))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                scratch.rename(self.folder / f"checkpoint-{step}")
                for old in saved_steps(self.folder)[: -self.keep]:
                    shutil.rmtree(self.folder / f"checkpoint-{old}")
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise cannot_save(self.folder, error) from error

    def resume(self) -> int:
        """Load the newest checkpoint; the number of steps that it has, 0 if there is none.

        Raises StartupError if it is damaged, as after a loss of power.
        """
        if self.accelerator.is_main_process:
            for unfinished in self.folder.glob(".*.partial"):
                shutil.rmtree(unfinished, ignore_errors=True)
        steps = saved_steps(self.folder)
        if steps:
            newest = self.folder / f"checkpoint-{steps[-1]}"
            try:
                self.accelerator.load_state(str(newest))
            except torch.OutOfMemoryError:
                raise
            except (OSError, RuntimeError, EOFError, SafetensorError) as error:
                before = f"after step {steps[-2]}" if steps[1:] else "from the beginning"
                raise StartupError(
                    f"{newest} is damaged: delete it and run the same command again, which goes on {before}"
                ) from error
        return steps[-1] if steps else 0


def cannot_save(folder: Path, error: Exception) -> StartupError:
    """torch and safetensors raise errors of their own for a full disk."""
    steps = saved_steps(folder)
    rest = f"the training goes on after step {steps[-1]}" if steps else "the training begins anew"
    return StartupError(f"cannot write to {folder} ({error}): make room there and run the same command again; {rest}")
