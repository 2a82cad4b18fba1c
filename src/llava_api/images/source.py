"""What an ``image_url`` names: a ``data:`` URL, a web address, a local or an uploaded file.

Reads neither network nor disk.
"""

import re
from collections.abc import Callable
from typing import Literal

import pybase64

from llava_api.errors import BadImage, ErrorCode

Scheme = Literal["data", "web", "file", "stored"]
Take = Callable[[int], None]
"""Called, in any thread, with a number of bytes before they are held. Raises Busy if there is no memory for them."""
BARE_BASE64 = re.compile(r"\s*(?:b['\"])?[A-Za-z0-9+/_\r\n-]{64}")
STORED = "file-"
"""How the id of an uploaded file begins."""
PYTHON_BYTES = (b"b'", b'b"')
"""How Python writes bytes that were not made a text before they were put into one."""
DATA_URL = re.compile(r"\s*data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
ESCAPED = (
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%2F", b"/"),
    (b"%2f", b"/"),
    (b"%3D", b"="),
    (b"%3d", b"="),
    (b"\\n", b""),
)
"""What a browser may make of base64's characters that are not letters or digits, and a program of a line's end."""
URL_SAFE = bytes.maketrans(b"-_", b"+/")
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
    if start.startswith("data:") or BARE_BASE64.match(url[:128]):
        return "data"
    if start.startswith(("http://", "https://")):
        return "web"
    if start.startswith("file:"):
        return "file"
    if start.startswith(STORED):
        return "stored"
    raise BadImage(NOT_A_SOURCE)


def stored_url(file_id: str) -> str:
    """The id of an uploaded file as an image's URL. Any other text becomes an id that no file has."""
    return STORED + file_id.removeprefix(STORED)


def start_of_data(url: str) -> int:
    """Where the base64 text of a ``data:`` URL, or of base64 alone, begins. Raises BadImage, without ``param``."""
    if BARE_BASE64.match(url[:128]):
        return 0
    start = 0
    # Programs put the same beginning in front of a whole URL.
    for _ in range(2):
        header = DATA_URL.match(url[start : start + 512])
        if header is None:
            break
        if "base64" not in (word.strip() for word in f"{header['type']}{header['parameters']}".lower().split(";")):
            raise BadImage("The data: URL of an image must be base64 encoded (data:image/...;base64,...).")
        start += header.end()
    if not start:
        raise BadImage("An image must be a base64 data: URL, for example data:image/jpeg;base64,...")
    return start


def decoded_size(url: str, start: int) -> int:
    """Bytes in the base64 text from ``start`` on: three for four characters, none for ``=``. Whitespace counts, too."""
    return (len(url) - start) * 3 // 4 - url[max(start, len(url) - 2) :].count("=")


def decode_base64(encoded: str) -> bytes:
    """Takes whitespace, missing ``=``, URL-safe base64 and Python's ``b'...'``.

    Raises BadImage, without ``param``, if the text is damaged.
    """
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        pass
    # Only now, and by the fast loops of bytes: this may be megabytes of whitespace.
    try:
        tidy = encoded.encode("ascii").translate(None, b" \t\r\n\f\v")
        for escaped, letter in ESCAPED:
            tidy = tidy.replace(escaped, letter)
        if tidy.startswith(PYTHON_BYTES):
            tidy = tidy[2:].rstrip(b"'\"")
        tidy = tidy.translate(URL_SAFE).rstrip(b"=")
        return pybase64.b64decode(tidy + b"=" * (-len(tidy) % 4), validate=True)
    except ValueError as error:
        raise BadImage("The image's base64 data is damaged: encode the file again.") from error
