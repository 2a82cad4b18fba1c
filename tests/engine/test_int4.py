"""4-bit layers with torch's kernel: what they compute, beside the same weights unpacked to float32."""

from typing import Any

import pytest
import torch
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS as KERNELS
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from llava_api.engine import vllm_int4
from llava_api.engine.vllm_int4 import FEW_ROWS, AmxInt4LinearKernel, Int4LinearKernel, use_faster_kernels

INPUTS, OUTPUTS = 512, 64 * 9
TYPES = [torch.bfloat16, torch.float16, torch.float32]
pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in vllm_int4.BLOCKS, reason="no processor with AVX2"
)


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_int4, "has_amx", lambda: False)
    monkeypatch.setitem(KERNELS, PlatformEnum.CPU, list(KERNELS[PlatformEnum.CPU]))
    assert use_faster_kernels()


def config(dtype: torch.dtype, group: int, *, zero_points: bool = False, outputs: int = OUTPUTS) -> Any:
    kind = scalar_types.uint4 if zero_points else scalar_types.uint4b8
    return MPLinearLayerConfig((INPUTS, outputs), (INPUTS, outputs), kind, dtype, group, zero_points)


def words(levels: torch.Tensor) -> torch.Tensor:
    """Eight 4-bit numbers in a word, along the last dimension."""
    whole = (levels.long().unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


def parameter(data: torch.Tensor, **dimensions: int) -> torch.nn.Parameter:
    made = torch.nn.Parameter(data.contiguous(), requires_grad=False)
    for name, value in dimensions.items():
        setattr(made, name, value)
    return made


def layer_of(dtype: torch.dtype, group: int, layout: str) -> tuple[torch.nn.Module, Any, torch.Tensor]:
    """A layer as vLLM has loaded it, its kernel, and the weights in float32."""
    torch.manual_seed(0)
    groups = 1 if group == -1 else INPUTS // group
    levels = torch.randint(0, 16, (OUTPUTS, INPUTS))
    scales = (torch.rand(OUTPUTS, groups) * 0.01 + 0.001).to(dtype)
    zeros = torch.randint(0, 16, (OUTPUTS, groups)) if layout == "AWQ" else torch.full((OUTPUTS, groups), 8)
    layer = torch.nn.Module()
    if layout == "compressed-tensors":
        layer.weight = parameter(words(levels), input_dim=1, output_dim=0, packed_dim=1)
        layer.scale = parameter(scales, output_dim=0)
    else:
        layer.weight = parameter(words(levels).T, input_dim=0, output_dim=1, packed_dim=0)
        layer.scale = parameter(scales.T, output_dim=1)
        layer.zeros = parameter(words(zeros.T), output_dim=1)
    settings = config(dtype, group, zero_points=layout == "AWQ")
    kernel = choose_mp_linear_kernel(settings)(settings, "weight", "scale", "zeros")
    repeats = INPUTS // groups
    reference = (levels - zeros.repeat_interleave(repeats, 1)) * scales.float().repeat_interleave(repeats, 1)
    return layer, kernel, reference


def error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((made.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("layout", ["compressed-tensors", "GPTQ", "AWQ"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_a_layer(dtype: torch.dtype, group: int, layout: str) -> None:
    layer, kernel, reference = layer_of(dtype, group, layout)
    assert isinstance(kernel, Int4LinearKernel)
    kernel.process_weights_after_loading(layer)
    # Half a byte for each weight, and 4 bytes for each group: nothing is held twice.
    held = sum(tensor.nbytes for tensor in layer.parameters())
    assert held == INPUTS * OUTPUTS // 2 + 4 * OUTPUTS * INPUTS // (256 if group == -1 else group)
    bias = torch.randn(OUTPUTS).to(dtype)
    few = FEW_ROWS[torch.backends.cpu.get_cpu_capability()]
    for rows in (1, 5, few, few + 1, few + 100):
        x = torch.randn(rows, INPUTS).to(dtype)
        wanted = x.float() @ reference.T
        made = kernel.apply_weights(layer, x)
        assert (made.dtype, made.shape) == (dtype, (rows, OUTPUTS))
        assert error(made, wanted) < 0.01
        # Activations that are a part of a larger tensor, as the attention's output is, in one more dimension.
        part = torch.cat([x, x], dim=1)[None, :, :INPUTS]
        assert error(kernel.apply_weights(layer, part, bias), (wanted + bias.float())[None]) < 0.01


def test_vllms_kernel_stays_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mp_linear_kernel(config(torch.bfloat16, 128)) is Int4LinearKernel
    assert choose_mp_linear_kernel(config(torch.bfloat16, 128, outputs=48 * 2)).__name__ == "CPUWNA16LinearKernel"
    monkeypatch.setattr(vllm_int4, "has_amx", lambda: True)
    assert choose_mp_linear_kernel(config(torch.bfloat16, 128)) is AmxInt4LinearKernel
    assert choose_mp_linear_kernel(config(torch.float32, 128)) is Int4LinearKernel


@pytest.mark.skipif(not vllm_int4.has_amx(), reason="no processor with AMX")
@pytest.mark.parametrize("layout", ["compressed-tensors", "GPTQ", "AWQ"])
@pytest.mark.parametrize("group", [64, -1])
def test_amx_gets_the_weights_that_vllm_would_arrange(group: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_int4, "has_amx", lambda: True)
    monkeypatch.setattr(vllm_int4, "ROWS_AT_ONCE", 128)
    layer, kernel, reference = layer_of(torch.bfloat16, group, layout)
    theirs, *_ = layer_of(torch.bfloat16, group, layout)
    for one in (layer, theirs):
        one.bias = None
    assert isinstance(kernel, AmxInt4LinearKernel)
    kernel.process_weights_after_loading(layer)
    CPUWNA16LinearKernel(kernel.config, "weight", "scale", "zeros").process_weights_after_loading(theirs)
    for name in ("weight", "scale", "zeros"):
        assert torch.equal(getattr(layer, name), getattr(theirs, name)), name
    x = torch.randn(5, INPUTS).to(torch.bfloat16)
    # Activations have 8 bits there.
    assert error(kernel.apply_weights(layer, x), x.float() @ reference.T) < 0.03
