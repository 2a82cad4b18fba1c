"""4-bit linear layers on x86 processors: torch's kernel in vLLM's place without AMX, and a faster start with it.

vLLM's own takes three to four times as long there for one row, and its library for processors without AVX-512 has
none (vllm-project/vllm#55613). With AMX, vLLM's kernel for bfloat16 is the faster one and stays.
"""

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types
from vllm.utils.torch_utils import direct_register_custom_op

BLOCKS = {"AVX512": 64, "AVX2": 32}
"""torch's name of the processor's instructions -> outputs that its kernel packs together. A byte holds a weight of
the block's first half in its low bits, and one of the second half in its high bits."""
GROUPS = (256, 128, 64, 32)
"""Inputs that can share a scale in torch's kernel."""
ROWS_AT_ONCE = 1024
"""Outputs that are packed in one go: 16 MB of numbers for 4096 inputs."""
BLOCKS_AT_ONCE = 8
"""Blocks whose weights are unpacked in one go: at most 2 MB for 4096 inputs."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
EIGHTS = -0x77777778
"""A word of eight zero points of 8, as a signed number."""
FEW_ROWS = {"AVX512": 192, "AVX2": 64}
"""Rows of activations up to which torch's kernel is used. Processor time for 4096 inputs and 11008 outputs on a Xeon
without its AMX, 1, 128 and 320 rows: 3.3, 146 and 348 ms with AVX-512, unpacked 67, 203 and 370, vLLM's kernel
11, 145 and 336; with AVX2 5, 303 and 699, unpacked 88, 226 and 396."""


class Int4LinearKernel(MPLinearKernel):
    """Any scheme of vLLM's with 4-bit weights: compressed-tensors, GPTQ, and AWQ with its zero points."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        inputs, outputs = c.partition_weight_shape
        block = BLOCKS.get(torch.backends.cpu.get_cpu_capability())
        if block is None:
            return False, "the processor has no AVX2"
        if c.weight_type not in (scalar_types.uint4, scalar_types.uint4b8):
            return False, f"{c.weight_type} is not a 4-bit type"
        if c.act_type is torch.bfloat16 and has_amx():
            return False, "vLLM's kernel for AMX is faster"
        if outputs % block or scale_group(c) is None:
            return False, f"{outputs} outputs of {inputs} inputs in groups of {c.group_size} cannot be packed"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        weights, scales, zeros = self._get_weight_params(layer)
        inputs, _ = self.config.partition_weight_shape
        # compressed-tensors has the outputs first in every tensor, GPTQ the inputs.
        words = weights.data if weights.input_dim == 1 else weights.data.t()
        scales = scales.data.t() if scales.output_dim == 0 else scales.data
        offset: torch.Tensor | int = 0
        if self.config.zero_points:
            zeros = zeros.data.t() if zeros.output_dim == 0 else zeros.data
            offset = (8.0 - nibbles(zeros)) * scales.float()
        if self.w_zp_name is not None:
            setattr(layer, self.w_zp_name, None)
        scales_and_offsets = torch.zeros(*scales.shape, 2, dtype=torch.bfloat16)
        scales_and_offsets[..., 0] = scales
        scales_and_offsets[..., 1] = offset
        repeats = inputs // scales.shape[0] // (scale_group(self.config) or 1)
        self._transform_param(layer, self.w_s_name, lambda _: scales_and_offsets.repeat_interleave(repeats, 0))
        self._transform_param(layer, self.w_q_name, lambda _: packed(words))

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weights, scales, _ = self._get_weight_params(layer)
        made: torch.Tensor = torch.ops.vllm.llava_api_int4_linear(x.reshape(-1, x.shape[-1]), weights, scales)
        return (made if bias is None else made + bias).view(*x.shape[:-1], -1)


class AmxInt4LinearKernel(CPUWNA16LinearKernel):
    """vLLM's kernel for AMX, whose weights are arranged for it some outputs at a time.

    vLLM unpacks a whole layer to 32 bits for that, several times over: 2.7 s for 22016 outputs of 4096 inputs on two
    cores, now 1.2.
    """

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.act_type is not torch.bfloat16 or not has_amx():
            return False, "only AMX's bfloat16 is computed this way"
        can: tuple[bool, str | None] = super().can_implement(c)
        return can

    def _process_gptq_weights_w4a8(self, layer: torch.nn.Module) -> None:
        weights, scales, zeros = self._get_weight_params(layer)
        if zeros is None:
            zeros = torch.full((len(scales), scales.shape[1] // 8), EIGHTS, dtype=torch.int32)
        else:
            zeros = awq_words(nibbles(zeros.data))
        # vLLM has turned the words, so that those of an output are in a column.
        words = weights.data.t()
        parts = []
        for start in range(0, len(words), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            some = awq_words(nibbles(words[rows]).t())
            eighth = slice(start // 8, (start + ROWS_AT_ONCE) // 8)
            algorithm = ops.CPUQuantAlgo.AWQ
            parts.append(
                ops.convert_weight_packed_scale_zp(
                    some, zeros[:, eighth].contiguous(), scales.data[:, rows].contiguous(), algorithm
                )
            )
        made = [torch.nn.Parameter(torch.cat(part), requires_grad=False) for part in zip(*parts, strict=True)]
        for name, value in zip((self.w_q_name, self.w_zp_name, self.w_s_name), made, strict=True):
            setattr(layer, name, value)
        if layer.bias is not None:
            layer.bias.data = layer.bias.float()


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """The eight 4-bit numbers of each 32-bit word, along the last dimension, as bytes."""
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)


def awq_words(levels: torch.Tensor) -> torch.Tensor:
    """Bytes of 4-bit numbers -> 32-bit words of eight of them along the last dimension, in AWQ's order."""
    outputs = levels.shape[-1]
    pairs = levels.reshape(-1, outputs // 8, 8)[..., AWQ_ORDER].reshape(-1, outputs // 2, 2)
    made: torch.Tensor = (pairs[..., 0] | pairs[..., 1] << 4).contiguous().view(torch.int32)
    return made


def use_faster_kernels() -> bool:
    """Offer the kernels to vLLM before its own. Returns False if this vLLM chooses its kernels in another way."""
    kernels = getattr(linear, "_POSSIBLE_KERNELS", {}).get(PlatformEnum.CPU)
    if kernels is None or "_POSSIBLE_KERNELS" not in linear.choose_mp_linear_kernel.__code__.co_names:
        return False
    if Int4LinearKernel not in kernels:
        kernels[:0] = [Int4LinearKernel, AmxInt4LinearKernel]
    return True


def has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def scale_group(c: MPLinearLayerConfig) -> int | None:
    """Inputs that share a scale in the kernel: the checkpoint's group, or a part of it."""
    whole = c.partition_weight_shape[0] if c.group_size == -1 else c.group_size
    return next((size for size in GROUPS if whole % size == 0), None)


def packed(words: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs / 8) words -> (outputs, inputs / 2) bytes in the order of torch's kernel."""
    made = torch.empty(words.shape[0], words.shape[1] * 4, dtype=torch.uint8)
    for start in range(0, len(words), ROWS_AT_ONCE):
        part = nibbles(words[start : start + ROWS_AT_ONCE]).to(torch.int32)
        made[start : start + ROWS_AT_ONCE] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(part, 2)
    return made


def int4_linear(x: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``x``: (rows, inputs); ``weights``: see ``packed``; ``scales``: (groups, outputs, [scale, offset])."""
    if len(x) <= FEW_ROWS[torch.backends.cpu.get_cpu_capability()]:
        # Only bfloat16 has a fast kernel: other types took 20 times as long.
        rows, group = x.to(torch.bfloat16).contiguous(), x.shape[1] // len(scales)
        few: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weights, group, scales)
        return few.to(x.dtype)
    narrow = x.dtype is torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return unpacked_linear(x.to(torch.bfloat16 if narrow else torch.float32), weights, scales).to(x.dtype)


def unpacked_linear(x: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply with some of the weights at a time, unpacked to the type of ``x``.

    Bytes are read as numbers of that type's width (words). The n-th four bits of every word are a matrix of their own,
    whose values are made by bit operations: with 2^m, m bits of mantissa, the lowest bits of a number count as ones.
    """
    inputs, groups = x.shape[1], len(scales)
    block = BLOCKS[torch.backends.cpu.get_cpu_capability()]
    width = x.dtype.itemsize
    words = weights.view(torch.int16 if width == 2 else torch.int32).view(-1, inputs, block // 2 // width)
    blocks, _, columns = words.shape
    base = torch.tensor(1 / torch.finfo(x.dtype).eps, dtype=x.dtype)
    base_bits = int(base.view(words.dtype))
    # [scale, offset], half of the block, byte of the word, group, 1, block, word
    factors = scales.to(x.dtype).view(groups, 1, blocks, 2, columns, width, 2).permute(6, 3, 5, 0, 1, 2, 4).contiguous()
    made = x.new_empty(len(x), blocks, 2, columns, width)
    for start in range(0, blocks, BLOCKS_AT_ONCE):
        chosen = slice(start, start + BLOCKS_AT_ONCE)
        part = words[chosen].transpose(0, 1).reshape(inputs, -1)
        bits = torch.empty_like(part)
        for place in range(2 * width):
            byte, half = divmod(place, 2)
            torch.bitwise_right_shift(part, 4 * place, out=bits).bitwise_and_(15).bitwise_or_(base_bits)
            values = bits.view(x.dtype).sub_(base + 8).view(groups, -1, part.shape[1])
            scale, offset = factors[:, half, byte, :, :, chosen].reshape(2, groups, 1, -1)
            torch.addcmul(offset, values, scale, out=values)
            made[:, chosen, half, :, byte] = (x @ values.view(inputs, -1)).view(len(x), -1, columns)
    return made.view(len(x), -1)


# One operation to torch.compile, which would otherwise keep the branch of the first number of rows.
direct_register_custom_op(
    "llava_api_int4_linear", int4_linear, fake_impl=lambda x, weights, _: x.new_empty(len(x), len(weights))
)
