"""Pixels against LLaVA's original code, to the bit."""

import hashlib
from typing import Any

import numpy as np
import pytest

from llava_api.images.decode import Decoded
from llava_api.images.pixels import anyres_levels, pad_levels, square_levels
from llava_api.vision.normalisation import CLIP
from tests.support.golden import cases, golden_image
from tests.unit.test_geometry import PINPOINTS


@pytest.mark.parametrize("case", cases("pixels"), ids=lambda case: f"{case['mode']}-{case['width']}x{case['height']}")
def test_pixels_to_the_bit(case: dict[str, Any]) -> None:
    image = golden_image(case["width"], case["height"], case["seed"])
    decoded = Decoded(image, image.size)
    if case["mode"] == "pad":
        shown = pad_levels(decoded, 336, CLIP)
    elif case["mode"] == "anyres":
        shown = anyres_levels(decoded, PINPOINTS, 336)
    else:
        # The golden file writes null where image_aspect_ratio is not set.
        shown = square_levels(decoded, 336)
    pixels = CLIP.apply(shown)
    assert list(pixels.shape) == case["shape"]
    assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == case["sha256_float32"]
