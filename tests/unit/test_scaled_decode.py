"""JPEGs decoded at a DCT scale: near the exact pixels, whatever the size, the orientation and the mode."""

import io

import numpy as np
import pytest
from PIL import Image

from llava_api.errors import BadImage
from llava_api.images.decode import decode
from llava_api.images.load import ImageLoader, ImagePart
from llava_api.images.mode import ImageMode
from llava_api.images.pixels import render_pixels, squeeze_padded
from llava_api.limits.account import Account
from llava_api.settings import Settings
from llava_api.vision.geometry import Size
from llava_api.vision.normalisation import CLIP
from tests.support.questions import data_url

PAD = ImageMode("pad", 112, 14, 64, CLIP)
SQUARE = ImageMode("square", 112, 14, 64, CLIP)
ANY_RES = ImageMode("anyres", 112, 14, 64, CLIP, ((112, 224), (224, 112), (224, 224)))
MODES = {"pad": PAD, "square": SQUARE, "anyres": ANY_RES, "low": ANY_RES.at("low")}


def soft_image(size: Size) -> Image.Image:
    """Gradients under grain, as photographs have."""
    rng = np.random.default_rng(size)
    cells = Image.fromarray(rng.integers(0, 256, (size[1] // 40 + 2, size[0] // 40 + 2, 3), dtype=np.uint8))
    levels = np.asarray(cells.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((levels + rng.normal(0, 6, levels.shape)).clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "size", [(1001, 747), (513, 1027), (1600, 801), (1345, 1345)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_scaled_is_near_exact(size: Size, orientation: int, mode: ImageMode) -> None:
    data = as_jpeg(soft_image(size), orientation)
    exact = decode(data, orientation)
    scaled = decode(data, orientation, needed=mode.needed(exact.size))
    assert scaled.size == exact.size
    away = np.abs(render_pixels(scaled, mode).astype(int) - render_pixels(exact, mode).astype(int))
    assert away.max() <= 8
    assert 10 * np.log10(255**2 / max((away**2).mean(), 1e-9)) > 48


@pytest.mark.parametrize("side", [1345, 1347, 2691, 3001])
def test_a_square_image_has_no_padding_to_fade_into(side: int) -> None:
    data = as_jpeg(Image.new("RGB", (side, side), "white"))
    scaled = decode(data, needed=PAD.needed((side, side)))
    assert scaled.scale > 1
    assert render_pixels(scaled, PAD).min() >= 254


def test_never_below_twice_what_is_needed() -> None:
    for size in ((448, 224), (449, 225), (447, 223), (1800, 1000), (225, 449)):
        data = as_jpeg(soft_image(size))
        for mode in MODES.values():
            needed = mode.needed(size)
            assert needed is not None
            scaled = decode(data, needed=needed)
            if scaled.scale > 1:
                assert scaled.image.width >= 2 * needed[0]
                assert scaled.image.height >= 2 * needed[1]


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (7, 1400), (1400, 7), (113, 112), (1, 1), (5, 900)])
def test_padding_in_bands_is_padding(size: Size) -> None:
    """Against the square itself, as LLaVA's expand2square makes it."""
    image, side = soft_image(size), max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    wanted = square.resize((112, 112), Image.Resampling.BICUBIC)
    assert (np.asarray(squeeze_padded(image, 112, (122, 116, 104))) == np.asarray(wanted)).all()


@pytest.mark.parametrize(("setting", "to_the_bit"), [("exact", True), ("scaled", False)])
async def test_the_setting_decides(setting: str, to_the_bit: bool) -> None:
    image = soft_image((1601, 1201))
    loader = ImageLoader(PAD, Settings.model_validate({"jpeg_decode": setting}))
    try:
        measured = await loader.measure([ImagePart(data_url(image, "JPEG"), "p")], "", Account().memory.take)
        (shown,) = await loader.render(measured, "")
    finally:
        await loader.close()
    whole = decode(measured[0].data)
    assert bool((shown.pixels == render_pixels(whole, PAD)).all()) is to_the_bit


def test_a_truncated_jpeg_is_refused_at_every_scale() -> None:
    data = as_jpeg(soft_image((1600, 1200)))
    for needed in (None, (100, 75), (300, 225)):
        with pytest.raises(BadImage):
            decode(data[: len(data) // 2], needed=needed)
