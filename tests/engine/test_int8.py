"""8-bit layers with AMX: the same packed weights as vLLM's own, made while they are read, and the same results."""

import pytest
import torch
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

from llava_api.engine import vllm_int8
from llava_api.engine.vllm_int8 import AmxInt8LinearKernel

pytestmark = pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no processor with AMX")
CONFIG = Int8ScaledMMLinearLayerConfig(is_static_input_scheme=False, is_channelwise=True, input_symmetric=True)
NAMES = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
INPUTS = 128


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._C._cpu._init_amx()
    torch.manual_seed(0)
    monkeypatch.setattr(vllm_int8, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(vllm_int8, "ROWS_AT_ONCE", 64)


def layer_of(widths: list[int], weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.logical_widths = widths
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale.clone(), requires_grad=False)
    layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    layer.input_scale = layer.input_zero_point = layer.azp_adj = None
    return layer


@pytest.mark.parametrize(("widths", "shards"), [([160, 96, 96], ["q", "k", "v"]), ([224, 224], [0, 1]), ([96], [None])])
def test_joined_projections_are_packed_as_vllm_packs_them(widths: list[int], shards: list[str | int | None]) -> None:
    parts = [torch.randint(-127, 128, (width, INPUTS), dtype=torch.int8) for width in widths]
    scale, bias = torch.rand(sum(widths), 1) / 100, torch.randn(sum(widths)).bfloat16()
    ours, theirs = (layer_of(widths, torch.cat(parts), scale, bias) for _ in range(2))
    kernel, vllms = AmxInt8LinearKernel(CONFIG, NAMES), CPUInt8ScaledMMLinearKernel(CONFIG, NAMES)
    kernel.pack_while_reading(ours)
    # Files may have them in any order.
    for part, shard in reversed(list(zip(parts, shards, strict=True))):
        ours.weight.weight_loader(ours.weight, part, *([] if shard is None else [shard]))
    kernel.process_weights_after_loading(ours)
    vllms.process_weights_after_loading(theirs)
    assert torch.equal(ours.weight, theirs.weight)
    for rows in range(1, 8):
        x = torch.randn(rows, INPUTS).bfloat16()
        made = kernel.apply_weights(ours, x, bias)
        expected = x.float() @ (torch.cat(parts).float() * scale).T + bias.float()
        assert made.shape == (rows, sum(widths))
        assert (made.float() - expected).norm() / expected.norm() < 0.02
        assert torch.equal(made, vllms.apply_weights(theirs, x, bias))


def test_a_projection_that_ends_within_a_block_is_left_to_vllm() -> None:
    weight = torch.randint(-127, 128, (48 + 48, INPUTS), dtype=torch.int8)
    layer = layer_of([48, 48], weight, torch.rand(96, 1), torch.zeros(96))
    kernel = AmxInt8LinearKernel(CONFIG, NAMES)
    kernel.pack_while_reading(layer)
    assert torch.equal(layer.weight, weight)
    kernel.process_weights_after_loading(layer)
    assert torch.equal(layer.weight, torch.ops._C.convert_weight_packed(weight))
