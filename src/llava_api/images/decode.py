"""Bytes of a picture file -> an upright RGB picture; the only place where Pillow opens a file.

Two deviations from LLaVA's own code, because people expect them: EXIF orientation is applied, and transparency
is flattened on white. Limits are checked on the header, before a pixel is decoded.
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
    """What the first bytes of a picture tell; (width, height) as a person sees it, orientation applied."""

    width: int
    height: int


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
            sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        except (OSError, ValueError, SyntaxError) as error:
            raise BadImage(UNREADABLE, param=param) from error
    return Header(height, width) if sideways else Header(width, height)


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


def decode(data: bytes, param: str) -> Image.Image:
    """The first frame, upright, in RGB. Raises BadImage for a damaged or truncated file."""
    with open_picture(data, param) as image:
        try:
            image.load()
            # Not ImageOps.exif_transpose: it writes the EXIF data anew and fails, in many ways, where a camera
            # wrote an unusual tag.
            turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
            upright = image if turn is None else image.transpose(turn)
            if upright.has_transparency_data:
                layered = upright.convert("RGBA")
                flat = Image.new("RGBA", layered.size, (255, 255, 255, 255))
                return Image.alpha_composite(flat, layered).convert("RGB")
            if upright.mode.startswith("I;16") or upright.mode == "I":
                # 16-bit grey: Pillow's own conversion would clip instead of scaling.
                return upright.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
            return upright.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadImage(UNREADABLE, param=param) from error
