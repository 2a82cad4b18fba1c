"""Draws the images that the demo checkpoints are trained and examined on.

One to three filled shapes, each inside its own cell of a 2x2 grid over the whole image, or one number of one
or two digits. A drawing is a pure function of its random generator, so a seed names it forever.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

KINDS = ("circle", "square", "triangle", "star")

COLOURS: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (214, 39, 40), (230, 25, 25), (200, 20, 30), (239, 60, 60)),
    "green": (
        (0, 128, 0),
        (0, 200, 0),
        (34, 139, 34),
        (44, 160, 44),
        (50, 205, 50),
        (0, 255, 0),
        (0, 100, 0),
    ),
    "blue": ((0, 0, 255), (30, 60, 220), (31, 119, 180), (65, 105, 225), (30, 144, 255), (20, 20, 160)),
    "yellow": ((255, 255, 0), (255, 215, 0), (250, 225, 30), (240, 220, 20), (255, 235, 59)),
    "black": ((0, 0, 0), (20, 20, 20), (35, 35, 35)),
    "purple": (
        (128, 0, 128),
        (148, 103, 189),
        (160, 32, 240),
        (138, 43, 226),
        (120, 40, 160),
        (147, 51, 234),
    ),
    "orange": ((255, 165, 0), (255, 127, 14), (255, 140, 0), (245, 130, 48), (249, 115, 22), (255, 120, 0)),
}
"""Anchors of each colour name; the first is the CSS colour of that name."""
TEAL = "teal"
TEALS: tuple[Colour, ...] = ((0, 128, 128), (0, 139, 139), (20, 150, 150), (0, 120, 125))
"""A colour that no training of the demo checkpoints has shown: see ``training.teal``."""

FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "LiberationSans-Regular.ttf",
    "LiberationSans-Bold.ttf",
    "Roboto-Regular.ttf",
    "Roboto-Bold.ttf",
    "OpenSans-Regular.ttf",
    "OpenSans-Bold.ttf",
    "NotoSans-Regular.ttf",
    "NotoSans-Bold.ttf",
)
FONT_FOLDERS = (Path("/usr/share/fonts"), Path.home() / ".fonts")


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing in a drawing: a shape with its colour, or one digit (colour ``black``)."""

    kind: str
    colour: str
    cell: int
    """0..3: the cell of the 2x2 grid in reading order; -1 for a digit."""
    box: Box
    """(left, top, right, bottom) in pixels."""


@dataclass(frozen=True, slots=True)
class Drawing:
    image: Image.Image
    shapes: tuple[Mark, ...]
    """In reading order."""
    digits: tuple[Mark, ...]

    @property
    def number(self) -> str | None:
        return "".join(mark.kind for mark in self.digits) or None


@lru_cache(maxsize=1)
def sans_serif_fonts() -> tuple[str, ...]:
    """Paths of the installed sans-serif fonts of ``FONT_FILES``; Pillow's built-in one needs no file."""
    found = {path.name: str(path) for folder in FONT_FOLDERS if folder.is_dir() for path in folder.rglob("*.ttf")}
    return tuple(found[name] for name in FONT_FILES if name in found)


@lru_cache(maxsize=512)
def load_font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType")
        return font
    return ImageFont.truetype(path, size)


def random_size(rng: Random, smallest: int, largest: int) -> tuple[int, int]:
    """(width, height): the longer side log-uniform, aspect ratio up to 2:1, no side below ``smallest``."""
    longer = round(math.exp(rng.uniform(math.log(smallest), math.log(largest))))
    shorter = max(smallest, round(longer / rng.uniform(1.0, 2.0)))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def random_colour(rng: Random, name: str) -> Colour:
    red, green, blue = rng.choice(TEALS if name == TEAL else COLOURS[name])
    jitter = rng.choice((0, 0, 10))
    red, green, blue = (min(255, max(0, value + rng.randint(-jitter, jitter))) for value in (red, green, blue))
    return red, green, blue


def outline(rng: Random, kind: str, box: Box) -> list[tuple[float, float]]:
    """The polygon of a square, triangle or star that fills its box."""
    left, top, right, bottom = box
    if kind == "square":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if kind == "triangle":
        return [((left + right) / 2, top), (right, bottom), (left, bottom)]
    inner = rng.uniform(0.36, 0.5)
    points = []
    for corner in range(10):
        radius = 1.0 if corner % 2 == 0 else inner
        angle = math.pi * corner / 5
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    lowest = max(y for _, y in points)
    widest = max(x for x, _ in points)
    return [
        (
            left + (x / widest + 1) / 2 * (right - left),
            top + (y + 1) / (lowest + 1) * (bottom - top),
        )
        for x, y in points
    ]


def shape_width(rng: Random, kind: str, height: float, room: float) -> float:
    if kind == "triangle":
        return min(room, height * rng.choice((1.0, 1.1547, rng.uniform(0.95, 1.2))))
    if kind == "star":
        return min(room, height * 1.0515)
    return height


def draw_shapes(
    rng: Random, canvas: ImageDraw.ImageDraw, size: tuple[int, int], scale: int, colours: tuple[str, ...]
) -> tuple[Mark, ...]:
    """Draw one to three shapes and return them in reading order; ``scale`` is the supersampling factor."""
    width, height = size
    cells = sorted(rng.sample(range(4), rng.randint(1, 3)))
    marks = []
    for cell in cells:
        kind = rng.choice(KINDS)
        colour = rng.choice(colours)
        cell_width, cell_height = width / 2, height / 2
        tall = rng.uniform(0.55, 0.90) * min(cell_width, cell_height)
        wide = shape_width(rng, kind, tall, cell_width)
        left = (cell % 2) * cell_width + rng.uniform(0, cell_width - wide)
        top = (cell // 2) * cell_height + rng.uniform(0, cell_height - tall)
        if rng.random() < 0.3:
            left = (cell % 2) * cell_width + (cell_width - wide) / 2
            top = (cell // 2) * cell_height + (cell_height - tall) / 2
        box = (left, top, left + wide, top + tall)
        scaled = tuple(value * scale for value in box)
        fill = random_colour(rng, colour)
        if kind == "circle":
            canvas.ellipse((scaled[0], scaled[1], scaled[2], scaled[3]), fill=fill)
        else:
            points = outline(rng, kind, (scaled[0], scaled[1], scaled[2], scaled[3]))
            canvas.polygon(points, fill=fill)
        marks.append(Mark(kind, colour, cell, box))
    return tuple(marks)


def draw_number(rng: Random, canvas: ImageDraw.ImageDraw, size: tuple[int, int], scale: int) -> tuple[Mark, ...]:
    """Write one number of one or two digits, large and dark, and return a mark for each digit."""
    width, height = size[0] * scale, size[1] * scale
    text = str(rng.randint(0, 9) if rng.random() < 0.3 else rng.randint(10, 99))
    fonts = (None, None, *sans_serif_fonts())
    path = rng.choice(fonts)
    wanted = rng.uniform(0.38, 0.85) * min(width, height)
    # Cap height is about 0.72 of a font's size; sizes are rounded so that the font cache is hit.
    font_size = max(8, round(wanted / 0.72 / 4) * 4)
    font = load_font(path, font_size)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    if right - left > 0.94 * width:
        font = load_font(path, max(8, int(font_size * 0.94 * width / (right - left))))
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    spread = 0.0 if rng.random() < 0.4 else 1.0
    free_x, free_y = width - (right - left), height - (bottom - top)
    x = free_x * (0.5 + spread * rng.uniform(-0.4, 0.4)) - left
    y = free_y * (0.5 + spread * rng.uniform(-0.4, 0.4)) - top
    shade = rng.randint(0, 60)
    fill = (shade, shade, shade) if rng.random() < 0.8 else tuple(rng.randint(0, 80) for _ in range(3))
    canvas.text((x, y), text, fill=fill, font=font)
    marks = []
    for index, digit in enumerate(text):
        before = canvas.textlength(text[:index], font=font)
        after = canvas.textlength(text[: index + 1], font=font)
        box = (x + before, y + top, x + after, y + bottom)
        marks.append(Mark(digit, "black", -1, tuple(value / scale for value in box)))  # type: ignore[arg-type]
    return tuple(marks)


def new_drawing(
    rng: Random, size: tuple[int, int], number: bool | None = None, colours: tuple[str, ...] = tuple(COLOURS)
) -> Drawing:
    """A drawing of (width, height) ``size``; ``number`` None draws numbers a fifth of the time."""
    shows_number = rng.random() < 0.2 if number is None else number
    grey = 255 if rng.random() < 0.5 else rng.randint(205, 252)
    smooth = max(size) <= 700 and rng.random() < 0.6
    scale = 2 if smooth else 1
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), (grey, grey, grey))
    canvas = ImageDraw.Draw(image)
    if shows_number:
        shapes, digits = (), draw_number(rng, canvas, size, scale)
    else:
        shapes, digits = draw_shapes(rng, canvas, size, scale, colours), ()
    if smooth:
        image = image.reduce(scale)
    return Drawing(image, shapes, digits)


def encode(image: Image.Image, image_format: str, quality: int = 85) -> bytes:
    """The image as a PNG or JPEG file."""
    buffer = io.BytesIO()
    if image_format == "JPEG":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, image_format)
    return buffer.getvalue()


def through_jpeg(rng: Random, image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", rng.randint(60, 95)))).convert("RGB")
