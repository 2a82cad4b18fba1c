"""Seeded JPEG images: soft gradients, shapes and grain, so that they take as many bytes as a camera's.

An image is a window into one larger base image, at an offset that its number gives, with one shape drawn in: a
12-megapixel one costs a crop and an encode, and no two have a pixel pattern or a file in common.
"""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Size = tuple[int, int]  # (width, height)

MARGIN = 257
"""Offsets in each direction."""
IMAGES = MARGIN * MARGIN
"""Different images of one size."""
STRIDE = 40_503
"""Shares no factor with IMAGES, so that numbers in a row give all offsets, far apart."""
GRAIN = 5.4
"""Standard deviation of the grain: with it 4000 x 3000 pixels at quality 90 are 3.2 MB."""
QUALITY = 90


def base_image(size: Size, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = int(rng.integers(max(1, height // 40), max(2, height // 8)))
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)))
    grainy = np.empty_like(pixels)
    grain = rng.standard_normal((height, width), dtype=np.float32) * GRAIN
    for channel in range(3):
        own = rng.standard_normal((height, width), dtype=np.float32) * (GRAIN / 2)
        grainy[..., channel] = (pixels[..., channel] + grain + own).clip(0, 255)
    return Image.fromarray(grainy)


class Images:
    """Images of one size, by number."""

    def __init__(self, size: Size, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.base = base_image((size[0] + MARGIN - 1, size[1] + MARGIN - 1), seed)

    def jpeg(self, number: int) -> bytes:
        if not 0 <= number < IMAGES:
            raise ValueError(f"there are {IMAGES} images of one size; {number} is not one of them")
        down, across = divmod((number * STRIDE + self.seed) % IMAGES, MARGIN)
        width, height = self.size
        image = self.base.crop((across, down, across + width, down + height))
        rng = np.random.default_rng([self.seed, number])
        x, y, radius = int(rng.integers(width)), int(rng.integers(height)), max(2, height // 10)
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def jpegs(self, numbers: range) -> list[bytes]:
        with ThreadPoolExecutor(2) as threads:  # Pillow encodes without the GIL.
            return list(threads.map(self.jpeg, numbers))
