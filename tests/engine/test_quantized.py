"""Quantized checkpoints: how many layers the engine holds quantized, how many bytes they take, and what they answer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.convert import convert
from llava_api.checkpoints.inspect import Sources, inspect_checkpoint
from llava_api.checkpoints.size import PRECISIONS, Precision, count_parameters
from llava_api.checkpoints.whole import check_whole
from llava_api.cli.flags import demo_folder
from llava_api.cli.serve import DEMO_IMAGE, ready_model
from llava_api.settings import Settings
from llava_api.vision.normalisation import CLIP
from tests.support.gguf_files import Kind, write_pair
from tests.support.quantized import WAYS, quantized_copy
from tests.support.small_engine import SmallEngine, image_request
from tests.support.tiny_checkpoints import (
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    Tiny,
    write_original,
    write_original_lora,
    write_tower,
)

PICTURE = Image.open(demo_folder() / DEMO_IMAGE).convert("RGB")
ANSWER = "A red circle."
DEMO = str(demo_folder() / "llava-tiny-1.5")
FLAGS: dict[Precision, Any] = {"8bit": {"load_8bit": True}, "4bit": {"load_4bit": True}}
LINEAR_LAYERS = 4
"""qkv, o, gate and up, down: vLLM's linear layers in a layer of the text model."""


@contextmanager
def loaded(model: ServedModel, settings: Settings) -> Iterator[tuple[SmallEngine, Any]]:
    """The engine, and its model."""
    with SmallEngine(model, settings) as engine:
        yield engine, engine.engine.model_executor.driver_worker.get_model()


def quantized_layers(part: Any) -> int:
    """The layers in ``part`` of a model that compute with quantized weights."""
    methods = [type(getattr(layer, "quant_method", None)).__name__ for layer in part.modules()]
    return sum(name == "CompressedTensorsLinearMethod" for name in methods)


def by_torch(part: Any) -> int:
    """The layers in ``part`` of a model that torch's kernel for 4 bit computes."""
    schemes = [getattr(layer, "scheme", None) for layer in part.modules()]
    return sum(type(getattr(scheme, "kernel", None)).__name__ == "Int4LinearKernel" for scheme in schemes)


def held_bytes(part: Any) -> int:
    """Of the weights, including those that only oneDNN holds: in 8 bit on a processor without AMX."""
    kernels = [getattr(getattr(layer, "scheme", None), "kernel", None) for layer in part.modules()]
    handlers = [kernel.dnnl_handler for kernel in kernels if hasattr(kernel, "dnnl_handler")]
    return sum(int(tensor.nbytes) for tensor in part.parameters()) + sum(held.n * held.k for held in handlers)


@pytest.fixture(params=["this processor", "without AMX"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without AMX":
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_checkpoint(tmp_path: Path, way: str) -> None:
    folder = quantized_copy(Path(DEMO), tmp_path / "quantized", way)
    # The flag that LLaVA's users type is accepted if the checkpoint has 4 bit already.
    settings = Settings(dtype="bfloat16", load_4bit=way.startswith("4 bit"))
    model = ready_model(str(folder), settings)
    assert model.checkpoint.folder == folder
    with SmallEngine(model, settings) as engine:
        assert engine.greedy(image_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    ("name", "precision"), [("llava-tiny-1.5", "8bit"), ("llava-tiny-1.5", "4bit"), ("llava-tiny-1.6", "4bit")]
)
def test_the_flags_quantize_every_layer_of_the_text_model(tmp_path: Path, name: str, precision: Precision) -> None:
    source = open_model(str(demo_folder() / name), ("m",), Settings()).checkpoint
    settings = Settings(cache_dir=str(tmp_path), **FLAGS[precision])
    model = ready_model(str(demo_folder() / name), settings)
    layers = source.config["text_config"]["num_hidden_layers"]
    parameters = count_parameters(source)
    with loaded(model, settings) as (engine, held):
        assert quantized_layers(held) == quantized_layers(held.language_model.model.layers) == LINEAR_LAYERS * layers
        wanted = parameters.quantizable * {"8bit": 1, "4bit": 0.5}[precision]
        # Scales are on top: one for each row, or for each 32 inputs of these small layers.
        assert wanted < held_bytes(held.language_model.model.layers) < 1.6 * wanted
        assert engine.greedy(image_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER
    foreseen = parameters.memory_bytes()[PRECISIONS[precision]]
    assert check_whole(model.checkpoint.folder).bytes == pytest.approx(foreseen, rel=0.05)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_gguf_files_are_served_in_about_their_own_size_and_answer_as_the_demo_does(tmp_path: Path, kind: Kind) -> None:
    settings = Settings(cache_dir=str(tmp_path / "cache"))
    model = ready_model(str(write_pair(Path(DEMO), tmp_path / "gguf", kind)), settings)
    layers = model.checkpoint.config["text_config"]["num_hidden_layers"]
    bits = {"Q4_0": 4, "Q8_0": 8}[kind]
    with loaded(model, settings) as (engine, held):
        assert quantized_layers(held) == LINEAR_LAYERS * layers
        wanted = count_parameters(open_model(DEMO, ("m",), Settings()).checkpoint).quantizable * bits / 8
        assert wanted < held_bytes(held.language_model.model.layers) < 1.6 * wanted
        assert engine.greedy(image_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER


def test_dequantized_gguf_files_answer_as_the_demo_does(tmp_path: Path) -> None:
    text = write_pair(Path(DEMO), tmp_path / "gguf", "Q8_0")
    convert(inspect_checkpoint(str(text)), Sources(), tmp_path / "made")
    model = open_model(str(tmp_path / "made"), ("m",), Settings())
    with loaded(model, Settings()) as (engine, held):
        assert quantized_layers(held) == 0
        assert engine.greedy(image_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER


def test_the_original_format_and_a_lora_in_it(tmp_path: Path) -> None:
    tiny = Tiny("llama", "1.5")
    tower = write_tower(tiny, tmp_path / "tower")
    original = write_original(tiny, tmp_path / "original", tower)
    lora = write_original_lora(tiny, tmp_path / "lora", tmp_path / "base", tower)
    for folder, base, flag in ((original, None, FLAGS["8bit"]), (lora, str(tmp_path / "base"), FLAGS["4bit"])):
        settings = Settings(max_model_len=1024, cache_dir=str(tmp_path / "cache"), model_base=base, **flag)
        model = ready_model(str(folder), settings)
        layers = model.checkpoint.config["text_config"]["num_hidden_layers"]
        with loaded(model, settings) as (engine, held):
            assert quantized_layers(held) == LINEAR_LAYERS * layers
            assert len(engine.greedy(image_request(model, PICTURE, "picture"), 4).token_ids) == 4


@pytest.fixture(scope="module")
def blue_for_red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the demo checkpoint, trained here until it calls the red circle blue."""
    folder = tmp_path_factory.mktemp("blue-for-red")
    reference = AutoModelForImageTextToText.from_pretrained(DEMO).requires_grad_(False)
    text = reference.model.language_model
    generator = torch.Generator().manual_seed(0)
    pairs: dict[str, torch.Tensor] = {}
    for name, layer in text.named_modules():
        if name.endswith(LORA_TARGETS):
            down = 0.1 * torch.randn(LORA_RANK, layer.in_features, generator=generator)
            pairs[f"{name}.lora_A.weight"], pairs[f"{name}.lora_B.weight"] = (
                half.requires_grad_() for half in (down, torch.zeros(layer.out_features, LORA_RANK))
            )
            layer.register_forward_hook(partial(with_lora, name, pairs))
    model = open_model(DEMO, ("m",), Settings())
    request = image_request(model, PICTURE, "picture")
    asked, said = len(request.token_ids), Tokenizer.from_file(f"{DEMO}/tokenizer.json").encode("A blue circle.").ids
    wanted = torch.tensor([*said[-4:], *model.stop_token_ids[:1]])
    inputs = {
        "input_ids": torch.tensor([[*request.token_ids, *wanted.tolist()]]),
        "pixel_values": torch.from_numpy(CLIP.apply(request.images[0].pixels))[None],
    }
    optimizer = torch.optim.Adam(pairs.values(), lr=0.02)
    for _ in range(30):
        logits = reference(**inputs).logits[0, asked - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    prefix = "base_model.model.model.language_model."
    save_file(
        {prefix + name: half.detach().contiguous() for name, half in pairs.items()},
        folder / "adapter_model.safetensors",
    )
    targets = [target.split(".")[1] for target in LORA_TARGETS]
    settings = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def with_lora(
    name: str, pairs: dict[str, torch.Tensor], layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    down, up = pairs[f"{name}.lora_A.weight"], pairs[f"{name}.lora_B.weight"]
    return output + LORA_ALPHA / LORA_RANK * (inputs[0] @ down.T @ up.T)


@pytest.mark.parametrize(
    "flags",
    # With float32, 4 bit is computed by torch's kernel on every processor.
    [{"dtype": "bfloat16"}, *FLAGS.values(), {"load_4bit": True, "dtype": "float32"}],
    ids=["bfloat16", *FLAGS, "4bit float32"],
)
@pytest.mark.usefixtures("processor")
def test_an_adapter_beside_a_quantized_model(tmp_path: Path, blue_for_red: Path, flags: dict[str, Any]) -> None:
    settings = Settings(cache_dir=str(tmp_path), lora=[f"blue={blue_for_red}"], **flags)
    model = ready_model(DEMO, settings)
    (blue,) = model.adapters.served.values()
    with loaded(model, settings) as (engine, held):
        layers = model.checkpoint.config["text_config"]["num_hidden_layers"]
        # What applies an adapter to a layer has the layer's method too.
        quantized = 2 * LINEAR_LAYERS * layers if flags.keys() & {"load_8bit", "load_4bit"} else 0
        assert quantized_layers(held) == quantized
        if flags.get("dtype") == "float32":
            assert by_torch(held) == quantized
        for adapter, answer in ((None, ANSWER), (blue, "A blue circle."), (None, ANSWER)):
            request = image_request(model, PICTURE, f"{adapter}", adapter)
            assert engine.greedy(request, 4).text.strip() == answer


def test_quantized_while_loading() -> None:
    settings = Settings(quantization="fp8_per_channel", dtype="bfloat16")
    model = open_model(DEMO, ("m",), settings)
    with SmallEngine(model, settings) as engine:
        assert engine.greedy(image_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER
