"""What an ``image_url`` names: a ``data:`` URL, a web address or a local file. Reads neither network nor disk."""

import re
from collections.abc import Callable
from typing import Literal

import pybase64

from llava_api.errors import BadImage, ErrorCode

Scheme = Literal["data", "web", "file"]
Take = Callable[[int], None]
"""Called, in any thread, with a number of bytes before they are held. Raises Busy if there is no memory for them."""
DATA_URL = re.compile(r"\s*data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
ESCAPED = ((b"%2B", b"+"), (b"%2b", b"+"), (b"%2F", b"/"), (b"%2f", b"/"), (b"%3D", b"="), (b"%3d", b"="))
"""What a browser may make of the three characters of base64 that are not letters or digits."""
NOT_A_SOURCE = (
    "An image must be a base64 data: URL, for example data:image/jpeg;base64,..., or an http:// or https:// URL."
)


def too_large(max_bytes: int) -> BadImage:
    """The error for an image that has too many bytes, without ``param``."""
    return BadImage(
        f"The image is larger than the {max_bytes} bytes this server takes: send a smaller one.",
        code=ErrorCode.IMAGE_TOO_LARGE,
    )


class ByteBudget:
    """How many bytes of images one request may still have.

    ``hold`` is called for files that did not come with the request.
    """

    def __init__(self, one_image: int, whole_request: int, hold: Take) -> None:
        self.one_image = one_image
        self.whole_request = whole_request
        self.hold = hold
        self.taken = 0

    def left(self) -> int:
        return min(self.one_image, self.whole_request - self.taken)

    def take(self, size: int) -> None:
        """Raises BadImage, without ``param``, if ``size`` bytes are too many."""
        if size > self.one_image:
            raise too_large(self.one_image)
        if size > self.whole_request - self.taken:
            raise BadImage(
                f"The images of this request have more than the {self.whole_request} bytes this server takes "
                "together: send smaller ones, or fewer.",
                code=ErrorCode.IMAGE_TOO_LARGE,
            )
        self.taken += size

    def fetch(self, size: int) -> None:
        """Take the bytes of a file that did not come with the request. Raises BadImage, without ``param``, and Busy."""
        self.take(size)
        self.hold(size)


def scheme_of(url: str) -> Scheme:
    """Raises BadImage, without ``param``, for any other scheme."""
    start = url[:64].lstrip()[:8].lower()
    if start.startswith("data:"):
        return "data"
    if start.startswith(("http://", "https://")):
        return "web"
    if start.startswith("file:"):
        return "file"
    raise BadImage(NOT_A_SOURCE)


def start_of_data(url: str) -> int:
    """Where the base64 text of a ``data:`` URL begins. Raises BadImage, without ``param``."""
    header = DATA_URL.match(url[:512])
    if header is None:
        raise BadImage("An image must be a base64 data: URL, for example data:image/jpeg;base64,...")
    if "base64" not in (parameter.strip() for parameter in header["parameters"].lower().split(";")):
        raise BadImage("The data: URL of an image must be base64 encoded (data:image/...;base64,...).")
    return header.end()


def decoded_size(url: str, start: int) -> int:
    """Bytes in the base64 text from ``start`` on: three for four characters, none for ``=``. Whitespace counts, too."""
    return (len(url) - start) * 3 // 4 - url[max(start, len(url) - 2) :].count("=")


def decode_base64(encoded: str) -> bytes:
    """Whitespace and missing ``=`` are tolerated. Raises BadImage, without ``param``, if the text is damaged."""
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        pass
    # Only now, and by the fast loops of bytes: this may be megabytes of whitespace.
    try:
        tidy = encoded.encode("ascii").translate(None, b" \t\r\n\f\v")
        for escaped, letter in ESCAPED:
            tidy = tidy.replace(escaped, letter)
        tidy = tidy.rstrip(b"=")
        return pybase64.b64decode(tidy + b"=" * (-len(tidy) % 4), validate=True)
    except ValueError as error:
        raise BadImage("The image's base64 data is damaged: encode the file again.") from error
