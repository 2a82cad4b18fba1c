"""What a training is made with: LLaVA's published settings for its mode, and what the user changes of them.

Source: ``scripts/v1_5/pretrain.sh``, ``finetune.sh`` and ``finetune_lora.sh`` of LLaVA's code.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["lora", "full", "projector"]
FINISHED = ("adapter_config.json", "config.json")
"""Files that make a folder an adapter or a checkpoint: they get their names when all else is there."""
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Recipe(BaseModel):
    """Each field but the mode is a flag, and its docstring the flag's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mode: Mode = "lora"
    learning_rate: Rate = 2e-4
    """Highest learning rate; default: 2e-4 in mode lora, 2e-5 in full, 1e-3 in projector."""
    projector_learning_rate: Rate | None = None
    """The projector's; 0 leaves the projector as it is; default: 2e-5 in mode lora, else --learning-rate."""
    batch: Count = 128
    """Samples in a step, on all devices together; default: 128, in mode projector 256."""
    batch_per_device: Count = 16
    """Samples that a device computes at once, for memory and speed only; default: 16, in mode projector 32."""
    epochs: Count = 1
    """Times that each sample is learned; default: 1."""
    rank: Count = 128
    """Rank of LoRA; default: 128."""
    alpha: Count = 256
    """Scale of LoRA, times its rank; default: 256."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout of LoRA; default: 0.05."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the steps in which the learning rates rise, before half a cosine down to 0; default: 0.03."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of order, dropout and new weights; default: 42."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What layers are computed in; default: bfloat16 on a GPU that has it, else float32."""
    gradient_checkpointing: bool = True
    """Compute activations twice instead of keeping them: less memory, more time; default: yes."""
    load_4bit: bool = False
    """Hold the text model in 4 bit in mode lora (QLoRA); needs bitsandbytes."""
    save_every: Count = 100
    """Steps between two checkpoints, from which a training that was cut off goes on; default: 100."""
    keep: Count = 2
    """Checkpoints to keep; default: 2."""
    workers: Annotated[int, Field(ge=0)] = min((os.cpu_count() or 1) // 2, 4)
    """Processes for each device that read images; default: half the cores, up to 4."""

    @property
    def projector_rate(self) -> float:
        return self.learning_rate if self.projector_learning_rate is None else self.projector_learning_rate

    def decisive(self) -> dict[str, Any]:
        """What decides the result, which a resumed training must have in common with its beginning."""
        return self.model_dump(exclude={"batch_per_device", "gradient_checkpointing", "save_every", "keep", "workers"})


PUBLISHED: dict[Mode, dict[str, Any]] = {
    "lora": {"projector_learning_rate": 2e-5},
    "full": {"learning_rate": 2e-5},
    "projector": {"learning_rate": 1e-3, "batch": 256, "batch_per_device": 32},
}


def recipe_for(mode: Mode, changes: dict[str, Any]) -> Recipe:
    """LLaVA's published settings for ``mode`` with the user's ``changes``. Raises pydantic's ValidationError."""
    return Recipe(mode=mode, **{**PUBLISHED[mode], **changes})
