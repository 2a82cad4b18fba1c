"""LLaVA-1.6 at its real tile sizes: whatever an image's size, the model makes as many features as the prompt holds.

The count is worked out from width and height before the image is opened, and a second time inside the model. Where
they differ, requests of just that size fail, or answer from an image that is cut off.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from PIL import Image

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.hub_files import clip_processor
from llava_api.settings import Settings
from llava_api.vision.families import LLAVA_1_6
from llava_api.vision.geometry import Size
from tests.support import golden
from tests.support.small_engine import SmallEngine, image_request
from tests.support.tiny_checkpoints import Tiny, text_fields, tokenizer_of
from tests.support.tiny_tokenizers import write_json
from training.drawings import new_drawing

TINY = Tiny("llama", "1.6")
REAL_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    # Features come from the last layer but one: one layer is computed, no more than it takes.
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 32,
}
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
GOLDEN = {(case["width"], case["height"]): case["image_tokens"] for case in golden.cases("anyres")}
PICTURES = 300
AT_ONCE = 20
EXTREMES = [(1, 1), (1, 2), (2, 1), (1, 200), (200, 1), (6000, 200), (200, 6000), (6000, 30), (30, 6000)]
ROUNDED = [(88, 55), (88, 99), (110, 352), (55, 176), (328, 205), (205, 656), (1128, 47), (94, 2256), (49, 3528)]
"""Where transformers' rounding would keep another row or column than LLaVA does; one in a hundred thousand sizes."""


def odd_size(random: Random) -> Size:
    """As likely tiny as large, and often far from square."""
    while True:
        size = round(6000 ** random.random()), round(6000 ** random.random())
        if max(size) <= Settings().max_image_aspect_ratio * min(size):
            return size


def sizes() -> list[Size]:
    """All sizes that LLaVA's own code was asked for, the known hard ones, and odd ones up to ``PICTURES``."""
    random = Random("any-res sweep")
    chosen = dict.fromkeys([*GOLDEN, *EXTREMES, *ROUNDED])
    while len(chosen) < PICTURES:
        chosen[odd_size(random)] = None
    return list(chosen)


def write_real_geometry(folder: Path) -> Path:
    """A random checkpoint with the tiles, patches and grids of llava-hf's, and nearly nothing behind them."""
    text = transformers.LlamaConfig(**{**text_fields(TINY), **TEXT, "num_key_value_heads": 2})
    config = transformers.LlavaNextConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_grid_pinpoints=REAL_PINPOINTS,
        image_token_index=TINY.image_token_id,
        dtype="float32",
    )
    torch.manual_seed(0)
    transformers.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    tokenizer_of(TINY, folder, image_token=True)
    # vLLM asks a processor for the tokens of the largest image, though none ever sees one.
    for name, content in clip_processor(LLAVA_1_6, VISION["image_size"], VISION["patch_size"], REAL_PINPOINTS).items():
        write_json(folder / name, content)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedModel, SmallEngine]]:
    settings = Settings(max_model_len=4096)
    model = open_model(str(write_real_geometry(tmp_path_factory.mktemp("real") / "hub")), ("real",), settings)
    with SmallEngine(model, settings) as engine:
        yield model, engine


CHOSEN = sizes()


@pytest.mark.parametrize(
    "batch",
    [CHOSEN[start : start + AT_ONCE] for start in range(0, len(CHOSEN), AT_ONCE)],
    ids=lambda batch: f"{batch[0][0]}x{batch[0][1]}-and-on",
)
def test_images_of_any_size_are_answered_with_the_features_that_their_prompt_has_room_for(
    batch: list[Size], loaded: tuple[ServedModel, SmallEngine]
) -> None:
    model, engine = loaded
    random = Random(f"{batch}")
    for width, height in batch:
        colour = random.randrange(256), random.randrange(256), random.randrange(256)
        image = Image.new("RGB", (width, height), colour)
        request = image_request(model, image, f"{width}x{height}")
        counted = request.images[0].length
        assert request.token_ids.count(TINY.image_token_id) == counted
        assert counted == GOLDEN.get((width, height), counted)
        before = len(engine.features)
        answer = engine.greedy(request, 1)
        assert len(answer.token_ids) == 1
        assert engine.features[before:] == [counted], f"{width}x{height}"


@pytest.mark.parametrize("size", [(1, 1), (336, 336), (640, 480), (3000, 200)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_detail_low_is_the_base_tile_and_a_newline(size: Size, loaded: tuple[ServedModel, SmallEngine]) -> None:
    model, engine = loaded
    request = image_request(model, Image.new("RGB", size, "green"), f"low-{size}", detail="low")
    before = len(engine.features)
    engine.greedy(request, 1)
    assert engine.features[before:] == [577] == [request.images[0].length]


def test_images_of_both_details_in_one_batch(loaded: tuple[ServedModel, SmallEngine]) -> None:
    model, engine = loaded
    image = new_drawing(Random("both"), (500, 300)).image
    low = image_request(model, image, "both-low", detail="low")
    high = image_request(model, image, "both-high", detail="high")
    alone = [engine.greedy(replace(one, request_id=f"{one.request_id}-alone"), 4).token_ids for one in (low, high)]
    assert [answer.token_ids for answer in engine.greedy_together([low, high], 4)] == alone
