"""A picture as a handful of coloured cells, for people at a terminal; and whether a file is a picture at all."""

from llava_api.images.decode import Limits, decode, read_header

Colour = tuple[int, int, int]
"""Red, green, blue; 0 to 255."""

ANY_SIZE = Limits(max_pixels=1_000_000_000, max_side=1_000_000, max_aspect_ratio=1_000_000)
"""What is too large is the server's to say."""
MAX_PIXELS = 50_000_000
"""Of a picture that is drawn: it has to be decoded for that."""


def media_type(data: bytes) -> str:
    """As ``image/png``. Raises BadImage, without its place, for what is no picture that can be taken."""
    return f"image/{read_header(data, ANY_SIZE).format.lower()}"


def miniature(data: bytes, columns: int, rows: int) -> list[list[Colour]] | None:
    """Rows of colours, at most ``rows`` of ``columns``, in the picture's proportions; None where it is too large.

    Raises BadImage, without its place, for a damaged file.
    """
    header = read_header(data, ANY_SIZE)
    width, height = header.upright_size()
    if width * height > MAX_PIXELS:
        return None
    shrink = max(width / columns, height / rows, 1.0)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    small = decode(data, header.orientation, needed=size).image.resize(size, reducing_gap=2.0)
    levels = small.tobytes()
    line = 3 * size[0]
    return [
        [(levels[at], levels[at + 1], levels[at + 2]) for at in range(start, start + line, 3)]
        for start in range(0, len(levels), line)
    ]
