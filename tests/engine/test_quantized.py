"""Quantized checkpoints answer: the demo in 8 and 4 bit still sees."""

from pathlib import Path

import pytest
from PIL import Image

from llava_api.chat.model import open_model
from llava_api.cli.flags import demo_folder
from llava_api.cli.serve import DEMO_IMAGE
from llava_api.settings import Settings
from tests.support.quantized import WAYS, quantized_copy
from tests.support.small_engine import SmallEngine, picture_request

PICTURE = Image.open(demo_folder() / DEMO_IMAGE).convert("RGB")
ANSWER = "A red circle."


def says(folder: str, settings: Settings) -> str:
    model = open_model(folder, ("m",), settings)
    with SmallEngine(model, settings) as engine:
        return engine.greedy(picture_request(model, PICTURE, "picture"), 4).text.strip()


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_checkpoint(tmp_path: Path, way: str) -> None:
    folder = quantized_copy(demo_folder() / "llava-tiny-1.5", tmp_path / "quantized", way)
    # The flag that LLaVA's users type is content where the checkpoint has 4 bit already.
    settings = Settings(dtype="bfloat16", load_4bit=way.startswith("4 bit"))
    assert says(str(folder), settings) == ANSWER


@pytest.mark.parametrize(
    "settings",
    [Settings(load_8bit=True), Settings(quantization="fp8_per_channel", dtype="bfloat16")],
    ids=["int8", "fp8"],
)
def test_quantized_while_loading(settings: Settings) -> None:
    assert says(str(demo_folder() / "llava-tiny-1.5"), settings) == ANSWER
