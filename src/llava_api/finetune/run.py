"""One training, from its first step or its newest checkpoint to its last step.

Each step's batch, learning rates and dropout follow from the step's number, so a training that was killed and resumed
takes the same steps. The loss is the mean over all learned tokens of a batch, however the batch is divided.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from llava_api.errors import StartupError
from llava_api.finetune.curve import Curve
from llava_api.finetune.dataset import IGNORED, FinetuneDataset, collator
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.order import Order, is_idle, rounds
from llava_api.finetune.recipe import Recipe
from llava_api.finetune.samples import BadSample
from llava_api.finetune.snapshots import Snapshots, cannot_save
from llava_api.finetune.trainee import load_trainee, parameter_groups

LARGEST_GRADIENT = 1.0
"""Longer gradients are scaled down to this length, transformers' default and so LLaVA's."""


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Of the step with this number, from 0: a linear rise, then half a cosine down to 0.

    As transformers has it, but for a training of one step, which would learn nothing.
    """
    rising = min(math.ceil(steps * warmup), steps - 1)
    if step < rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, else float32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if wanted == "bfloat16" or (wanted == "auto" and fast) else torch.float32


def processes() -> PartialState:
    """This process among those that train together; accelerate does not see by itself that there is no GPU."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


class Training:
    """Goes on from the newest checkpoint in its folder, if it has one."""

    def __init__(self, base: Path, data: FinetuneDataset, recipe: Recipe, folder: Path) -> None:
        """``base``: the checkpoint to train, in the hub's format; ``folder``: for checkpoints, log and results."""
        self.data = data
        self.recipe = recipe
        self.folder = folder
        self.dtype = compute_dtype(recipe.dtype, processes().device)
        self.accelerator = Accelerator(
            cpu=processes().device.type == "cpu",
            mixed_precision="no" if self.dtype == torch.float32 else "bf16",
        )
        self.devices, self.device = self.accelerator.num_processes, self.accelerator.process_index
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = recipe.batch_per_device
        torch.manual_seed(recipe.seed)
        # FSDP 1 takes only weights of one type, and computes in the other type itself.
        fsdp_1 = self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2
        trainee = load_trainee(base, recipe, torch.float32 if fsdp_1 else self.dtype, data.model.config_overrides())
        optimizer = torch.optim.AdamW(parameter_groups(trainee, recipe), weight_decay=0.0)
        self.model, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self.snapshots = Snapshots(folder, recipe.keep, self.accelerator)
        self.lengths = data.modality_lengths()
        self.order = Order(self.lengths, recipe.batch, recipe.epochs, recipe.seed)
        self.done = self.snapshots.resume()

    def plan(self) -> str:
        """What will be done, in a sentence."""
        weights = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        changed = sum(count for count, trains in weights if trains)
        several = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return (
            f"training {changed:,} of {sum(count for count, _ in weights):,} weights in "
            f"{str(self.dtype).removeprefix('torch.')} on {several} ({self.accelerator.device.type}): "
            f"{self.order.steps:,} steps of up to {self.recipe.batch} samples"
            + (f", going on after step {self.done:,}" if self.done else "")
        )

    def run(self) -> Iterator[dict[str, Any]]:
        """Take the steps that are left, yielding each one's line of the log. Raises StartupError."""
        parts = iter(self.loader())
        self.model.train()
        try:
            curve = Curve(self.folder, self.done) if self.accelerator.is_main_process else None
            for step, batch in enumerate(self.order.batches(self.done), start=self.done):
                line = self.step(step, batch, parts)
                if not (math.isfinite(line["loss"]) and math.isfinite(line["gradient"])):
                    raise StartupError(
                        f"step {step + 1} has the loss {line['loss']} and a gradient of {line['gradient']}: begin "
                        "again in another --output with a lower --learning-rate, or with --dtype float32"
                    )
                if curve is not None:
                    curve.add(line)
                yield line
                if (step + 1) % self.recipe.save_every == 0 or step + 1 == self.order.steps:
                    self.snapshots.save(step + 1)
            if curve is not None:
                curve.plot()
        except OSError as error:
            raise cannot_save(self.folder, error) from error
        except BadSample as error:
            # From a process that loads data it comes with a traceback before it.
            sentence = str(error).strip().splitlines()[-1].rpartition(f"{BadSample.__name__}: ")[2]
            raise StartupError(f"{sentence}; mend it and run the command again, which goes on from here") from error

    def my_rounds(self, batch: list[int]) -> list[list[int]]:
        return rounds(batch, self.lengths, self.recipe.batch_per_device, self.devices, self.device)

    def loader(self) -> Iterable[dict[str, Tensor]]:
        return DataLoader(
            self.data,
            batch_sampler=[part for batch in self.order.batches(self.done) for part in self.my_rounds(batch)],
            collate_fn=collator(self.data.model),
            num_workers=self.recipe.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def step(self, step: int, batch: list[int], parts: Iterator[dict[str, Tensor]]) -> dict[str, Any]:
        """One optimizer step; its line of the log."""
        started = time.monotonic()
        torch.manual_seed(self.recipe.seed + step * self.devices + self.device)
        mine = [next(parts) for _ in self.my_rounds(batch)]
        idle = [self.is_idle(batch, number) for number in range(len(mine))]
        counted = [part for part, left_out in zip(mine, idle, strict=True) if not left_out]
        learned = self.summed(sum(int((part["labels"][:, 1:] != IGNORED).sum()) for part in counted))
        tokens = self.summed(sum(int(part["attention_mask"].sum()) for part in counted))
        factor = rate_factor(step, self.order.steps, self.recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(mine):
            last = number == len(mine) - 1
            self.accelerator.sync_gradients = last
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(part) * (0.0 if idle[number] else 1 / max(learned, 1))
                total += loss.detach()
                # Gradients are averaged over the devices.
                self.accelerator.backward(loss * self.devices)
        # FSDP computes the length over all devices only if it is given exactly its parameters.
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "step": step + 1,
            "steps": self.order.steps,
            "epoch": round((step + 1) / self.order.steps_per_epoch, 3),
            "loss": self.summed(total.item()),
            "learning_rate": self.recipe.learning_rate * factor,
            "gradient": float(norm),
            "tokens": int(tokens),
            "seconds": round(time.monotonic() - started, 3),
        }

    def is_idle(self, batch: list[int], number: int) -> bool:
        return is_idle(batch, number, self.recipe.batch_per_device, self.devices, self.device)

    def summed(self, value: float) -> float:
        """Over all devices."""
        here = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(here, "sum"))

    def loss(self, part: dict[str, Tensor]) -> Tensor:
        """The sum over the learned tokens. The head is computed only where some sample has one."""
        if "pixel_values" not in part and self.devices > 1:
            part = with_blank_image(part, self.data.model)
        inputs = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in part.items()}
        # Padding is on the right, where no token that counts sees it.
        del inputs["attention_mask"]
        targets = inputs.pop("labels")[:, 1:]
        places = (targets != IGNORED).any(0).nonzero()[:, 0]
        logits = self.model(**inputs, logits_to_keep=places).logits
        wanted = targets[:, places].flatten()
        return functional.cross_entropy(logits.flatten(0, 1).float(), wanted, ignore_index=IGNORED, reduction="sum")


def with_blank_image(part: dict[str, Tensor], model: ModelInput) -> dict[str, Tensor]:
    """A round of text, with one more row that is a black image and learns nothing.

    Then the projector takes part in every round: several devices wait for one another there.
    """
    side = model.mode.tile_pixels
    grid = model.mode.grid((side, side))
    shape = (1, 3, side, side) if grid is None else (1, 1 + grid.across * grid.down, 3, side, side)
    row = torch.full((model.mode.tokens((side, side)),), model.checkpoint.image_token_id)
    rows = {"input_ids": row, "labels": torch.full_like(row, IGNORED), "attention_mask": torch.zeros_like(row)}
    fill = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    made = {
        name: pad_sequence([*part[name], row], batch_first=True, padding_value=fill[name]) for name, row in rows.items()
    }
    size = model.model_size((side, side))
    sizes = {} if size is None else {"image_sizes": torch.tensor([size])}
    return {**made, **sizes, "pixel_values": torch.zeros(shape)}


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """Raises StartupError instead of the errors of torch and Python for too little memory, on a GPU and on a CPU."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):
            raise StartupError(
                "a process that reads images was ended, as for too little (shared) memory: lower --workers (now "
                f"{recipe.workers}; 0 needs no shared memory) and run the command again, which goes on from here"
            ) from error
        known = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not known:
            raise
        raise StartupError(f"out of memory: {what_to_lower(recipe)}") from error


def what_to_lower(recipe: Recipe) -> str:
    """Advice: what the training can go on with, and what it must begin anew with."""
    lighter, other = [], []
    if recipe.batch_per_device > 1:
        lighter.append(f"lower --batch-per-device (now {recipe.batch_per_device}; steps stay the same)")
    if not recipe.gradient_checkpointing:
        lighter.append("leave out --no-gradient-checkpointing")
    if recipe.mode == "lora" and not recipe.load_4bit:
        other.append("--load-4bit")
    if recipe.mode == "full":
        other.append("--mode lora, or with several GPUs and FSDP")
    other.append("a lower --max-model-len and --skip-faulty, which leave out the longest samples")
    again = f"begin in another --output with {', or with '.join(other)}"
    if not lighter:
        return again
    return f"{' or '.join(lighter)}, and run the command again: it goes on after its last checkpoint; or {again}"
