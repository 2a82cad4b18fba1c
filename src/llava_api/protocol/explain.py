"""``POST /v1/explain``: what the model would be shown for a chat request. An endpoint of our own."""

from llava_api.protocol.messages import Detail
from llava_api.protocol.wire import Wire


class Placeholder(Wire):
    image: int
    """Index into ``images``."""
    offset: int
    """Index of its first token in ``prompt_token_ids``."""
    length: int


class ExplainedImage(Wire):
    param: str
    """Its place in the request, as error messages name it."""
    width: int
    """Of the file, in pixels."""
    height: int
    format: str
    """JPEG, PNG, WEBP, GIF or BMP."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright, or none."""
    shown_width: int
    """After the picture was turned upright."""
    shown_height: int
    mode: str
    """pad, square, anyres or hf."""
    detail: Detail
    """low where the base tile alone is shown, else high."""
    grid: list[int]
    """[tiles across, tiles down]; [1, 1] where the picture is one tile."""
    tiles: int
    """Tiles in the grid; the base tile that LLaVA-1.6 puts before them is not counted."""
    image_tokens: int
    pixels_shape: list[int]
    """[3, S, S] for one tile of LLaVA-1.5, [1 + tiles, 3, S, S] for LLaVA-1.6's base tile and grid."""
    pixels_sha256: str
    """SHA-256 of the normalised float32 tensor in C order."""


class Explanation(Wire):
    model: str
    version: str
    """1.5 or 1.6."""
    family: str
    family_reason: str
    image_mode: str
    image_mode_reason: str
    prompt: str
    """As LLaVA's own code prints it, ``<image>`` for each picture; BOS is not written."""
    prompt_token_ids: list[int]
    prompt_tokens: int
    text_tokens: int
    image_tokens: int
    context_length: int
    """Longest prompt plus answer."""
    context_left: int
    """Tokens left for the answer; below zero where the request is too long to be answered."""
    stop_token_ids: list[int]
    stop_texts: list[str]
    placeholders: list[Placeholder]
    """Where pictures stand in the prompt, in prompt order."""
    images: list[ExplainedImage]
    """In the order of the request."""
