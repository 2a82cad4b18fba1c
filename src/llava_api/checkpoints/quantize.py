"""Quantization of a text model's linear layers from its weights only, without calibration data.

The result is in the compressed-tensors format, which vLLM and transformers read. Each weight is rounded to the nearest
level: 8 bit with one scale per output row (activations are quantized while the engine runs, W8A8), or 4 bit with one
scale per group of inputs (W4A16). The vision tower, the projector, the embedding and the head keep their precision.
llmcompressor's ``model_free_ptq`` does the same, but its releases exclude the transformers that vLLM needs.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams

from llava_api.checkpoints.size import LINEAR_LAYERS, Precision
from llava_api.checkpoints.tensors import Tensors
from llava_api.errors import StartupError

IGNORED = ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"]
"""The patterns of all other linear layers, for config.json."""
GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale in 4 bit; vLLM's Marlin and CPU kernels support these."""
ROWS_AT_ONCE = 1024
"""Rows of a weight that are quantized together, which bounds the memory for intermediate float32 values."""


class Quantizer:
    """Quantizes tensors by their hub names.

    ``shapes`` are the shapes of all tensors of the checkpoint; the group size must divide each of their rows.
    """

    def __init__(self, precision: Precision, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.precision = precision
        if precision == "8bit":
            weights = QuantizationArgs(num_bits=8, strategy="channel")
            activations = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
            self.format = "int-quantized"
        else:
            inputs = [shape[1] for name, shape in shapes.items() if LINEAR_LAYERS.fullmatch(name)]
            weights = QuantizationArgs(num_bits=4, strategy="group", group_size=group_size(inputs))
            activations = None
            self.format = "pack-quantized"
        self.scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
        self.compressor = BaseCompressor.get_value_from_registry(self.format)

    def config(self) -> dict[str, Any]:
        """The ``quantization_config`` of the new config.json."""
        config = QuantizationConfig(
            config_groups={"group_0": self.scheme},
            format=self.format,
            quantization_status="compressed",
            ignore=IGNORED,
        )
        return dict(config.model_dump(mode="json", exclude_none=True))

    def quantized(self, tensors: Tensors) -> Tensors:
        """``tensors`` with each linear weight of the text model replaced by its quantized parts."""
        made: Tensors = {}
        for name, tensor in tensors.items():
            if LINEAR_LAYERS.fullmatch(name):
                layer = name.removesuffix(".weight")
                made |= {f"{layer}.{part}": value for part, value in self.parts(tensor).items()}
            elif tensor.dtype in (torch.float32, torch.float64):
                made[name] = tensor.to(torch.bfloat16)
            else:
                made[name] = tensor
        return made

    def parts(self, weight: torch.Tensor) -> Tensors:
        blocks = [self.compressed(rows) for rows in torch.split(weight, ROWS_AT_ONCE)]
        made = {part: torch.cat([block[part] for block in blocks]) for part in blocks[0] if part != "weight_shape"}
        if "weight_shape" in blocks[0]:
            made["weight_shape"] = torch.tensor(weight.shape)
        return made

    def compressed(self, rows: torch.Tensor) -> Tensors:
        size = self.scheme.weights.group_size
        values = rows.float()
        groups = values if size is None else values.reshape(len(values), -1, size)
        low, high = torch.aminmax(groups, dim=-1, keepdim=size is None)
        scale, _ = calculate_qparams(low, high, self.scheme.weights)
        # transformers computes in the scale's type, so it is that of the layers that are not quantized.
        dtype = rows.dtype if rows.dtype == torch.float16 else torch.bfloat16
        scale = scale.to(dtype).clamp(min=torch.finfo(dtype).tiny)
        return dict(self.compressor.compress({"weight": values, "weight_scale": scale}, self.scheme))


def group_size(inputs: Iterable[int]) -> int:
    """Return the largest group size that divides every number in ``inputs``. Raises StartupError."""
    known = list(inputs)
    for size in GROUP_SIZES:
        if all(count % size == 0 for count in known):
            return size
    raise StartupError("this checkpoint cannot be quantized to 4 bit: its layers have rows that 32 does not divide")
