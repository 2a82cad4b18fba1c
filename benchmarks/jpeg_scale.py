"""How far a JPEG decoded at a DCT scale (``--jpeg-decode scaled``) is from the same one decoded whole.

    python -m benchmarks.jpeg_scale

Levels of 0 to 255, as the model is shown them, for LLaVA's real tile size. ``soft`` images have what photographs
have, gradients and grain; ``hard`` ones also shapes with sharp edges and lines of one pixel, the worst case.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from llava_api.images.decode import decode
from llava_api.images.mode import ImageMode
from llava_api.images.pixels import render_pixels
from llava_api.vision.geometry import Size
from llava_api.vision.normalisation import CLIP

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
PAD = ImageMode("pad", 336, 14, 576, CLIP)
ANY_RES = ImageMode("anyres", 336, 14, 576, CLIP, PINPOINTS)
MODES = {"LLaVA-1.5": PAD, "LLaVA-1.6": ANY_RES, "LLaVA-1.6, detail low": ANY_RES.at("low")}
SIZES: tuple[Size, ...] = ((4000, 3000), (3000, 4000), (1999, 1333), (1365, 2047), (5003, 801))
SHAPES = 30


def image(size: Size, hard: bool, rng: np.random.Generator) -> Image.Image:
    width, height = size
    cells = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
    drawn = Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))
    if hard:
        pen = ImageDraw.Draw(drawn)
        for _ in range(SHAPES):
            x, y, radius = (int(rng.integers(low, high)) for low, high in ((0, width), (0, height), (5, width // 8)))
            colour, ink = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            pen.line((x, y, int(rng.integers(0, width)), int(rng.integers(0, height))), fill=ink)
    return drawn


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def rows() -> Iterator[str]:
    rng = np.random.default_rng(1)
    for size in SIZES:
        for hard in (False, True):
            data = as_jpeg(image(size, hard, rng))
            for name, mode in MODES.items():
                reduced = decode(data, needed=mode.needed(size))
                exact, shown = (render_pixels(one, mode).astype(int) for one in (decode(data), reduced))
                away = np.abs(shown - exact)
                error = float((away**2).mean())
                psnr = f"{10 * np.log10(255**2 / error):.1f}" if error else "exact"
                cells = (f"{size[0]}x{size[1]}", "hard" if hard else "soft", name, f"1/{reduced.scale}")
                yield "| " + " | ".join((*cells, str(away.max()), f"{np.percentile(away, 99.9):.0f}", psnr)) + " |"


def main() -> None:
    print("| JPEG | image | shown to | decoded at | most | 99.9 % within | PSNR, dB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
