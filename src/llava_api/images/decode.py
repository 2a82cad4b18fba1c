"""Bytes of an image file -> an upright RGB image. Pillow opens files only here and in ``isolated``.

Two deviations from LLaVA's own code, because people expect them: EXIF orientation is applied, and transparency
is flattened on white (``--no-exif-orientation`` and ``--no-flatten-transparency`` undo them). Limits are checked
on the header, before a pixel is decoded.
"""

import io
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from llava_api.errors import BadImage, ErrorCode
from llava_api.images import isolated
from llava_api.images.orientation import orientation_of
from llava_api.images.structure import HEIC, check_structure, scans, unsupported_kind, without_packed_text
from llava_api.settings import Settings
from llava_api.vision.geometry import Size

# The limits below replace it. It would warn about a size in one deployment and be silent about it in the next.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SIDEWAYS = (5, 6, 7, 8)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FROM_RIGHT = (2, 3, 6, 7)
"""Orientations that put the stored right or bottom edge on the left."""
FROM_BOTTOM = (3, 4, 7, 8)
"""Orientations that put the stored right or bottom edge at the top."""
RUN_LENGTHS = (1, 2)
"""BMP's compressions RLE8 and RLE4."""
MAX_SCAN_PIXELS = 1_000_000_000
"""Pixels times scans of a JPEG. Each scan of a progressive file costs as much as an image and takes a few bytes."""
END_OF_IMAGE = b"\xff\xd9"
OTHER_BITS = b"\x55" * 64
"""Data that the decoder would make other pixels of than of none, where pixels are missing."""
WANTED = "send a JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF file"
NO_HEIC = (
    "This is a HEIC file, which the server cannot read without a further package (pip install 'llava-api[heic]'): "
    "install it there, or send a JPEG."
)
UNREADABLE = f"The image cannot be read, or a part of it is missing: {WANTED}, whole."


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may cost, judged by its header."""

    max_pixels: int
    max_side: int
    max_aspect_ratio: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        return cls(settings.max_image_pixels, settings.max_image_side, settings.max_image_aspect_ratio)

    def check(self, size: Size) -> None:
        """Raises BadImage, without ``param``."""
        width, height = size
        if width < 1 or height < 1:
            raise BadImage(UNREADABLE)
        if width * height > self.max_pixels:
            raise BadImage(
                f"The image has more than the {self.max_pixels} pixels this server takes: scale it down.",
                code=ErrorCode.IMAGE_TOO_LARGE,
            )
        if max(size) > self.max_side:
            raise BadImage(
                f"The image has a side of more than the {self.max_side} pixels this server takes: scale it down.",
                code=ErrorCode.IMAGE_TOO_LARGE,
            )
        if max(size) > self.max_aspect_ratio * min(size):
            raise BadImage(
                f"The image is more than {self.max_aspect_ratio} times as long as it is wide, or the reverse: crop it.",
                code=ErrorCode.IMAGE_TOO_LARGE,
            )


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image file say."""

    stored_size: Size
    """(width, height) as the file stores them."""
    format: str
    """JPEG, PNG, WEBP, GIF, BMP, HEIF, AVIF, TIFF or JPEG2000."""
    orientation: int
    """EXIF orientation, 1 to 8. 1 is upright, also for a file without one, and for ``isolated`` files."""

    def upright_size(self) -> Size:
        """(width, height) after orientation is applied."""
        width, height = self.stored_size
        return (height, width) if self.orientation in SIDEWAYS else (width, height)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright RGB image, perhaps decoded at a fraction of its size."""

    image: Image.Image
    size: Size
    """(width, height) of the whole image."""
    scale: int = 1
    """1, 2, 4 or 8: pixels of the whole image along a side for each pixel of ``image``."""
    start: tuple[float, float] = (0.0, 0.0)
    """Where the whole image begins in ``image``: a side that ``scale`` does not divide leaves a part of a pixel."""

    def box(self) -> tuple[float, float, float, float]:
        """Where the whole image is in ``image``: left, top, right, bottom."""
        left, top = self.start
        width, height = self.size
        return (left, top, left + width / self.scale, top + height / self.scale)


def read_header(data: bytes, limits: Limits) -> Header:
    """Size and format from the header, without decoding. Raises BadImage, without ``param``."""
    isolated_kind = isolated.kind_of(data)
    if isolated_kind is not None:
        size = isolated_size(data, isolated_kind)
        limits.check(size)
        return Header(size, isolated_kind, 1)
    check_structure(data)
    with open_image(data) as image:
        limits.check(image.size)
        if image.format == "BMP" and image.info.get("compression") in RUN_LENGTHS:
            # Pillow unpacks run lengths in Python, which takes minutes for a large image.
            raise BadImage(f"This server takes no compressed BMP files: {WANTED}, a BMP uncompressed.")
        # Cameras' multi-picture files are JPEGs followed by more JPEGs, of which the first is the image.
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        most = max(MAX_SCAN_PIXELS, limits.max_pixels) // (image.width * image.height)
        if kind == "JPEG" and sum(1 for _ in islice(scans(data), most + 1)) > most:
            raise BadImage("The image is stored in too many scans: save it again, not as a progressive JPEG.")
        return Header(image.size, kind, orientation_of(image.info))


def isolated_size(data: bytes, kind: str) -> Size:
    try:
        return isolated.read_size(data, kind)
    except ValueError as error:
        raise BadImage(UNREADABLE) from error


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Raises BadImage, without ``param``, if the file is not an image in one of ``FORMATS``."""
    try:
        return Image.open(io.BytesIO(without_packed_text(data)), formats=FORMATS)
    except Exception as error:
        # Damaged files make Pillow's parsers raise many kinds of errors.
        name = unsupported_kind(data)
        if name is not None:
            message = NO_HEIC if name == HEIC else f"This is {name}, which the server does not take: {WANTED}."
            raise BadImage(message, code=ErrorCode.UNSUPPORTED_IMAGE_FORMAT) from error
        raise BadImage(UNREADABLE) from error


def decode(
    data: bytes, orientation: int = 1, on_white: bool = True, needed: Size | None = None, size: Size | None = None
) -> Decoded:
    """The first frame in RGB, turned upright from ``orientation`` (``Header.orientation``; 1 leaves it).

    ``on_white``: show white under transparency. ``needed``: (width, height) that the upright image will be scaled to;
    a JPEG is then decoded at the smallest DCT scale that keeps twice that in each direction. ``size``:
    ``Header.stored_size``, if the header has been read. Raises BadImage, without ``param``, if the file is damaged or
    truncated.
    """
    isolated_kind = isolated.kind_of(data)
    try:
        if isolated_kind is not None:
            pixels = isolated.read_pixels(data, isolated_kind, size or isolated.read_size(data, isolated_kind))
            image = flatten(pixels, on_white)
            return Decoded(image, image.size, 1, (0.0, 0.0))
        return decode_here(data, orientation, on_white, needed)
    except BadImage:
        if not lacks_only_its_end(data):
            raise
        return decode_here(data + END_OF_IMAGE, orientation, on_white, needed)
    except ValueError as error:
        raise BadImage(UNREADABLE) from error


def lacks_only_its_end(data: bytes) -> bool:
    """Whether a file is a JPEG with all pixels and without an end marker, as many network cameras send it."""
    try:
        return pixels_of_scan(data) == pixels_of_scan(data + OTHER_BITS)
    except Exception:
        # Damaged files make Pillow raise many kinds of errors.
        return False


def pixels_of_scan(jpeg: bytes) -> bytes:
    """The pixels of a JPEG of one scan without an end marker. Raises many kinds of errors."""
    with Image.open(io.BytesIO(jpeg + END_OF_IMAGE), formats=("JPEG",)) as image:
        (scan,) = islice(scans(jpeg), 2)
        if not isinstance(image, JpegImageFile) or "progressive" in image.info or jpeg[scan + 4] != image.layers:
            raise ValueError("a part of the pixels may be in a scan that is missing")
        return image.tobytes()


def decode_here(data: bytes, orientation: int, on_white: bool, needed: Size | None) -> Decoded:
    with open_image(data) as image:
        stored_size = image.size
        try:
            if needed is not None:
                width, height = needed[::-1] if orientation in SIDEWAYS else needed
                image.draft(None, (2 * width, 2 * height))
            reduced_size = image.size
            mend_transparency(image)
            image.load()
            turned = flatten(turn(image, orientation), on_white)
        except Exception as error:
            # Damaged files make Pillow raise many kinds of errors, assertions among them.
            raise BadImage(UNREADABLE) from error
    scale = next(scale for scale in (1, 2, 4, 8) if -(-stored_size[0] // scale) == reduced_size[0])
    size = stored_size[::-1] if orientation in SIDEWAYS else stored_size
    left = turned.width - size[0] / scale if orientation in FROM_RIGHT else 0.0
    top = turned.height - size[1] / scale if orientation in FROM_BOTTOM else 0.0
    return Decoded(turned, size, scale, (left, top))


def mend_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the scale of the pixels that Pillow makes. Call it before ``load``."""
    key = image.info.get("transparency")
    stored = image.tile[0].args if image.tile else None
    if isinstance(key, int) and stored in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (2 ** int(stored[2:]) - 1)
    elif isinstance(key, tuple) and stored == "RGB;16B":
        # Pillow keeps the upper eight bits, so a colour that shares them becomes transparent too, as in libpng.
        image.info["transparency"] = tuple(part >> 8 for part in key)


def turn(image: Image.Image, orientation: int) -> Image.Image:
    # ImageOps.exif_transpose would write the EXIF data again, and fails in many ways if a camera wrote an unusual tag.
    how = UPRIGHT.get(orientation)
    return image if how is None else image.transpose(how)


def flatten(image: Image.Image, on_white: bool) -> Image.Image:
    """Convert to RGB."""
    if image.mode.startswith("I"):
        return flatten_16_bit(image, on_white)
    if on_white and image.has_transparency_data:
        layered = image.convert("RGBA")
        flat = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        flat.alpha_composite(layered)
        return flat.convert("RGB")
    return image.convert("RGB")


def flatten_16_bit(image: Image.Image, on_white: bool) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's own conversion would clip. One level may be transparent."""
    values = np.asarray(image).astype(np.int64)
    grey = (values / 257).astype(np.uint8)
    if on_white and "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")
