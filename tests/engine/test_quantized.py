"""Quantized checkpoints: how many layers the engine holds quantized, how many bytes they take, and what they answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.size import PRECISIONS, Precision, count_parameters
from llava_api.checkpoints.whole import check_whole
from llava_api.cli.flags import demo_folder
from llava_api.cli.serve import DEMO_IMAGE, ready_model
from llava_api.settings import Settings
from tests.support.quantized import WAYS, quantized_copy
from tests.support.small_engine import SmallEngine, picture_request
from tests.support.tiny_checkpoints import (
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


def held_bytes(part: Any) -> int:
    return sum(int(tensor.nbytes) for tensor in part.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_checkpoint(tmp_path: Path, way: str) -> None:
    folder = quantized_copy(Path(DEMO), tmp_path / "quantized", way)
    # The flag that LLaVA's users type is accepted if the checkpoint has 4 bit already.
    settings = Settings(dtype="bfloat16", load_4bit=way.startswith("4 bit"))
    model = ready_model(str(folder), settings)
    assert model.checkpoint.folder == folder
    with SmallEngine(model, settings) as engine:
        assert engine.greedy(picture_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER


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
        assert engine.greedy(picture_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER
    foreseen = parameters.memory_bytes()[PRECISIONS[precision]]
    assert check_whole(model.checkpoint.folder).bytes == pytest.approx(foreseen, rel=0.05)


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
            assert len(engine.greedy(picture_request(model, PICTURE, "picture"), 4).token_ids) == 4


def test_quantized_while_loading() -> None:
    settings = Settings(quantization="fp8_per_channel", dtype="bfloat16")
    model = open_model(DEMO, ("m",), settings)
    with SmallEngine(model, settings) as engine:
        assert engine.greedy(picture_request(model, PICTURE, "picture"), 4).text.strip() == ANSWER
