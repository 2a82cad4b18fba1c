"""``POST /v1/explain``: the reply. The endpoint is not part of OpenAI's API."""

from llava_api.protocol.messages import Detail
from llava_api.protocol.wire import WireObject


class Placeholder(WireObject):
    image: int
    """Index into ``images``."""
    offset: int
    """Index of the image's first token in ``prompt_token_ids``."""
    length: int


class ExplainedImage(WireObject):
    param: str
    """Path of the image in the request, as error messages name it."""
    width: int
    """Width of the file, in pixels."""
    height: int
    format: str
    """JPEG, PNG, WEBP, GIF, BMP, HEIF, AVIF, TIFF or JPEG2000."""
    orientation: int
    """EXIF orientation, 1 to 8; 1: upright, or the file names none."""
    shown_width: int
    """Width after the image was turned upright."""
    shown_height: int
    mode: str
    """pad, square, anyres or hf."""
    detail: Detail
    """low if only the base tile is shown, else high."""
    grid: list[int]
    """[tiles across, tiles down]; [1, 1] if the image is one tile."""
    tiles: int
    """Tiles in the grid, without the base tile that LLaVA-1.6 puts before them."""
    image_tokens: int
    pixels_shape: list[int]
    """[3, S, S] for one tile of LLaVA-1.5, [1 + tiles, 3, S, S] for LLaVA-1.6's base tile and grid."""
    pixels_sha256: str
    """SHA-256 of the normalised float32 tensor in C order."""


class Explanation(WireObject):
    model: str
    version: str
    """1.5 or 1.6."""
    family: str
    family_reason: str
    image_mode: str
    image_mode_reason: str
    prompt: str
    """As LLaVA's own code prints it: ``<image>`` for each image, without BOS."""
    prompt_token_ids: list[int]
    prompt_tokens: int
    text_tokens: int
    image_tokens: int
    context_length: int
    """Most tokens of prompt and answer together."""
    context_left: int
    """Tokens left for the answer; negative if the request is too long to be answered."""
    stop_token_ids: list[int]
    stop_texts: list[str]
    placeholders: list[Placeholder]
    """Places of the images in the prompt, in the order of the prompt."""
    images: list[ExplainedImage]
    """In the order of the request."""
