"""8-bit linear layers on processors with AMX: packed while they are read, and never computed with three or four rows.

vLLM reads a whole checkpoint into memory of its own and then packs it into other memory. A large part of that time is
the system's, which makes each page anew: 7B took 15 s on two cores, and takes 5 to 13 from the file's pages.
"""

from functools import partial
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsW8A8Int8
from vllm.platforms import PlatformEnum

BLOCK = 32
"""Outputs that are packed together: one of theirs is ``inputs`` bytes and a sum of 4."""
ROWS_AT_ONCE = 1024
"""Outputs that are packed in one go, in memory that the allocator keeps for the next ones."""
SLOW_ROWS = (3, 4)
"""Numbers of rows that vLLM's kernel computes without AMX, though longer than with it: 2.1 and 2.3 ms for 4096 inputs
and 11008 outputs on two cores, which are bound by memory at 1.8 ms with 1, 5 or 16 rows."""
FAST_ROWS = 5
SHARDS = {"q": 0, "k": 1, "v": 2}
"""vLLM's name of a projection -> its place among those that it joins. Others have numbers, or none."""


class AmxInt8LinearKernel(CPUInt8ScaledMMLinearKernel):
    @classmethod
    def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        if not torch.cpu._is_amx_tile_supported() or not c.input_symmetric:
            return False, "only AMX's kernel for symmetric activations is changed"
        can: tuple[bool, str | None] = super().can_implement(c)
        return can

    def pack_while_reading(self, layer: Any) -> None:
        """Have the layer's new weight loaded in the form that the kernel wants, if each of its parts can be."""
        outputs, inputs = layer.weight.shape
        widths = layer.logical_widths
        if get_tensor_model_parallel_world_size() > 1 or inputs % BLOCK or any(width % BLOCK for width in widths):
            return
        layer.weight = torch.nn.Parameter(torch.empty(outputs, inputs + 4, dtype=torch.int8), requires_grad=False)
        layer.weight.weight_loader = partial(load_packed, widths)
        layer.weight_is_packed = True

    def process_weights_after_loading(self, layer: Any) -> None:
        if not getattr(layer, "weight_is_packed", False):
            super().process_weights_after_loading(layer)
            return
        self.linear_method = self._apply_weights_sgl
        packed = layer.weight
        # vLLM's method prepares bias and scales too, and packs what it finds: a block that is thrown away.
        layer.weight = torch.nn.Parameter(packed.data.new_zeros(BLOCK, BLOCK), requires_grad=False)
        self.process_weights_for_sgl(layer)
        layer.weight = torch.nn.Parameter(packed.data, requires_grad=False)

    def _apply_weights_sgl(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor
        if x.dim() == 2 and len(x) in SLOW_ROWS and not torch.compiler.is_compiling():
            more = torch.nn.functional.pad(x, (0, 0, 0, FAST_ROWS - len(x)))
            made = super()._apply_weights_sgl(layer, more, bias)[: len(x)]
        else:
            made = super()._apply_weights_sgl(layer, x, bias)
        return made


def load_packed(
    widths: list[int], parameter: torch.nn.Parameter, loaded: torch.Tensor, shard: str | int | None = None
) -> None:
    """Called by vLLM with ``loaded``, (outputs, inputs), as it is in the file, once for each projection of a layer."""
    place = 0 if shard is None else SHARDS.get(str(shard), shard)
    assert isinstance(place, int)
    start = sum(widths[:place])
    for row in range(0, len(loaded), ROWS_AT_ONCE):
        packed = torch.ops._C.convert_weight_packed(loaded[row : row + ROWS_AT_ONCE])
        parameter.data[start + row : start + row + len(packed)] = packed


def use_faster_kernel() -> bool:
    """Offer the kernel to vLLM before its own. Returns False if this vLLM chooses its kernels in another way."""
    kernels = getattr(linear, "_POSSIBLE_INT8_KERNELS", {}).get(PlatformEnum.CPU)
    if kernels is None or "_POSSIBLE_INT8_KERNELS" not in linear.init_int8_linear_kernel.__code__.co_names:
        return False
    if AmxInt8LinearKernel in kernels:
        return True
    kernels.insert(kernels.index(CPUInt8ScaledMMLinearKernel), AmxInt8LinearKernel)
    create_as_vllm_does = CompressedTensorsW8A8Int8.create_weights

    def create_weights(self: CompressedTensorsW8A8Int8, layer: Any, **arguments: object) -> None:
        create_as_vllm_does(self, layer, **arguments)
        if isinstance(self.kernel, AmxInt8LinearKernel):
            self.kernel.pack_while_reading(layer)

    CompressedTensorsW8A8Int8.create_weights = create_weights
    return True
