"""Expected values made by LLaVA's original code; never regenerated from ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def cases(name: str) -> list[dict[str, Any]]:
    data = json.loads((Path(__file__).parents[1] / "golden" / f"{name}.json").read_text())
    found: list[dict[str, Any]] = data["cases"]
    return found


def golden_image(width: int, height: int, seed: int) -> Image.Image:
    """As described in ``golden/pixels.json``."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red = (7 * x + 3 * y + 31 * seed) % 256
    green = ((x * x + 5 * y + 17 * seed) // 3) % 256
    blue = (2 * x + y * y // 5 + 11 * seed) % 256
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))
