"""The demo checkpoint quantized in the forms that people publish, by rounding to nearest.

Written from the formats' descriptions: compressed-tensors' ``int-quantized`` and GPTQ's packing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
GROUP = 32
NOT_QUANTIZED = ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"]


def text_layers(weights: Tensors) -> list[str]:
    """The linear layers of the text model, without ``.weight``."""
    return [
        name.removesuffix(".weight")
        for name in weights
        if name.startswith("language_model.model.layers.") and name.endswith("_proj.weight")
    ]


def int8_channels(weights: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Weights in 8 bit with one scale a row; activations are quantized while it runs (W8A8)."""
    made = dict(weights)
    for layer in text_layers(weights):
        weight = weights[f"{layer}.weight"].float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        made[f"{layer}.weight"] = (weight / scale).round().clamp(-128, 127).to(torch.int8)
        made[f"{layer}.weight_scale"] = scale
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel", "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
    }
    return made, {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": NOT_QUANTIZED,
    }


def gptq_4bit(weights: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Weights in 4 bit, one scale for each ``GROUP`` inputs, eight to a 32-bit number (GPTQ, symmetric, no order)."""
    made = dict(weights)
    for layer in text_layers(weights):
        weight = made.pop(f"{layer}.weight").float().T.contiguous()
        inputs, outputs = weight.shape
        groups = weight.view(inputs // GROUP, GROUP, outputs)
        scale = groups.abs().amax(dim=1).clamp(min=1e-8) / 7
        levels = (groups / scale[:, None]).round().clamp(-8, 7).to(torch.int32).view(inputs, outputs) + 8
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        packed = (levels.view(inputs // 8, 8, outputs) << shifts[None, :, None]).sum(dim=1)
        made[f"{layer}.qweight"] = packed.to(torch.int32)
        made[f"{layer}.scales"] = scale.to(torch.float16)
        # Zero points of 8, written less one, as GPTQ does.
        made[f"{layer}.qzeros"] = torch.full((inputs // GROUP, outputs // 8), 0x77777777, dtype=torch.int32)
        made[f"{layer}.g_idx"] = (torch.arange(inputs) // GROUP).to(torch.int32)
    return made, {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
    }


def awq_4bit(weights: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Weights in 4 bit, packed along the outputs in AWQ's order."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    made = dict(weights)
    for layer in text_layers(weights):
        weight = made.pop(f"{layer}.weight").float().T.contiguous()
        inputs, outputs = weight.shape
        groups = weight.view(inputs // GROUP, GROUP, outputs)
        scale = groups.abs().amax(dim=1).clamp(min=1e-8) / 7
        levels = (groups / scale[:, None]).round().clamp(-8, 7).to(torch.int64).view(inputs, outputs) + 8
        made[f"{layer}.qweight"] = packed_in(order, levels)
        made[f"{layer}.qzeros"] = packed_in(order, torch.full((inputs // GROUP, outputs), 8, dtype=torch.int64))
        made[f"{layer}.scales"] = scale.to(torch.float16)
    return made, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}


def packed_in(order: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    rows, columns = levels.shape
    eights = levels.view(rows, columns // 8, 8)[:, :, order]
    whole = (eights << torch.arange(0, 32, 4)).sum(dim=2)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


WAYS = {"int8 compressed-tensors": int8_channels, "4 bit GPTQ": gptq_4bit, "4 bit AWQ": awq_4bit}


def quantized_copy(demo: Path, folder: Path, way: str) -> Path:
    shutil.copytree(demo, folder)
    weights, settings = WAYS[way](load_file(demo / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "torch_dtype": "bfloat16", "quantization_config": settings})
    )
    return folder
