"""The model that is trained: transformers' LLaVA with the parts that a mode trains, and the optimizer's groups.

Trained weights are float32, frozen ones have the type that layers are computed in.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_api.finetune.recipe import Recipe

PROJECTOR = "multi_modal_projector"
TOWER = "vision_tower"


def load_trainee(folder: Path, recipe: Recipe, dtype: torch.dtype, config_overrides: dict[str, Any]) -> Any:
    """The model of a hub-format folder, ready to be trained."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Full training would only round its float32 weights on the way.
    stored = torch.float32 if recipe.mode == "full" else dtype
    quantized = {"quantization_config": four_bit(dtype)} if recipe.load_4bit else {}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=stored, attn_implementation="sdpa", **quantized)
    model.config.text_config.use_cache = False
    for name, value in config_overrides.items():
        setattr(model.config, name, value)
    model.requires_grad_(False)
    if recipe.mode == "lora":
        model = with_lora(model, recipe)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(TOWER not in name if recipe.mode == "full" else PROJECTOR in name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def with_lora(model: Any, recipe: Recipe) -> Any:
    """Low-rank changes to every linear layer of the text model but its head, and a projector of its own."""
    from peft import LoraConfig, get_peft_model

    text = model.model.language_model
    layers = sorted({name.rpartition(".")[2] for name, module in text.named_modules() if isinstance(module, nn.Linear)})
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=rf".*language_model\..*\.({'|'.join(layers)})",
        modules_to_save=None if recipe.projector_rate == 0 else [PROJECTOR],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def four_bit(dtype: torch.dtype) -> Any:
    """QLoRA's NF4 for the text model, as LLaVA's training code sets it."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # From the beginning of a name: without "model." the tower and the projector would be quantized too.
        llm_int8_skip_modules=[f"model.{TOWER}", f"model.{PROJECTOR}", "lm_head"],
    )


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups: the projector, and all else that is trained."""
    projector: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained(model):
        (projector if PROJECTOR in name else others).append(parameter)
    groups = [(others, recipe.learning_rate), (projector, recipe.projector_rate)]
    return [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in groups if parameters]
