"""Bytes of a picture file -> an upright RGB picture; the only place where Pillow opens a file.

Two deviations from LLaVA's own code, because people expect them: EXIF orientation is applied, and transparency
is flattened on white (``--no-exif-orientation`` and ``--no-flatten-transparency`` undo them). Limits are checked
on the header, before a pixel is decoded.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from llava_api.errors import BadImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
EXIF_ORIENTATION = 0x0112
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
TOO_LARGE = "image_too_large"
UNREADABLE = "The picture cannot be read: send a whole JPEG, PNG, WebP or GIF file."


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a picture tell."""

    stored_size: tuple[int, int]
    """(width, height) as the file stores them."""
    format: str
    """JPEG, PNG, WEBP or GIF."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright, and the value where there is none."""

    def upright_size(self) -> tuple[int, int]:
        """(width, height) as a person sees it, orientation applied."""
        width, height = self.stored_size
        return (height, width) if self.orientation in SIDEWAYS else (width, height)


def read_header(data: bytes, param: str, max_pixels: int) -> Header:
    """Size from the header alone. Raises BadImage for an unknown format or too many pixels."""
    with open_picture(data, param) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage(
                f"The picture has more than the {max_pixels} pixels this server takes: scale it down.",
                param=param,
                code=TOO_LARGE,
            )
        try:
            return Header((width, height), image.format or "", orientation_of(image))
        except (OSError, ValueError, SyntaxError) as error:
            raise BadImage(UNREADABLE, param=param) from error


def orientation_of(image: Image.Image) -> int:
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        # Pillow would decode the whole picture to look for a chunk behind it, where hardly anyone writes one.
        return 1
    value = image.getexif().get(EXIF_ORIENTATION)
    return int(value) if value in UPRIGHT else 1


def open_picture(data: bytes, param: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own pixel limit stands; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("The picture has far too many pixels: scale it down.", param=param, code=TOO_LARGE) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadImage(UNREADABLE, param=param) from error


def decode(data: bytes, param: str, orientation: int = 1, on_white: bool = True) -> Image.Image:
    """The first frame in RGB, turned upright from ``orientation`` (``Header.orientation``; 1 leaves it).

    ``on_white``: white is shown under transparency. Raises BadImage for a damaged or truncated file.
    """
    with open_picture(data, param) as image:
        try:
            image.load()
            # Not ImageOps.exif_transpose: it writes the EXIF data anew and fails, in many ways, where a camera
            # wrote an unusual tag.
            turn = UPRIGHT.get(orientation)
            turned = image if turn is None else image.transpose(turn)
            if on_white and turned.has_transparency_data:
                layered = turned.convert("RGBA")
                flat = Image.new("RGBA", layered.size, (255, 255, 255, 255))
                return Image.alpha_composite(flat, layered).convert("RGB")
            if turned.mode.startswith("I;16") or turned.mode == "I":
                # 16-bit grey: Pillow's own conversion would clip instead of scaling.
                return turned.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
            return turned.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadImage(UNREADABLE, param=param) from error
