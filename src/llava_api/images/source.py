"""What an ``image_url`` names: for now a ``data:`` URL; this module parses it and touches no network."""

import re

import pybase64

from llava_api.errors import BadImage

DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
WHITESPACE = re.compile(rb"\s+")


def read_data_url(url: str, param: str, max_image_bytes: int) -> bytes:
    """The bytes of a base64 ``data:`` URL. Raises BadImage, naming the part, for anything else."""
    header = DATA_URL.match(url[:256])
    if header is None:
        if url[:8].lower().startswith(("http://", "https://")):
            raise BadImage(
                "This server does not fetch pictures from the web yet: send the picture itself as a base64 data: "
                "URL, for example data:image/jpeg;base64,...",
                param=param,
                code="unsupported_image_source",
            )
        raise BadImage("A picture must be a base64 data: URL, for example data:image/jpeg;base64,...", param=param)
    if "base64" not in header["parameters"].lower().split(";"):
        raise BadImage("The data: URL of a picture must be base64 encoded (data:image/...;base64,...).", param=param)
    encoded = url[header.end() :]
    # Four characters carry three bytes; the limit is checked before anything is decoded.
    if len(encoded) * 3 // 4 > max_image_bytes + 2:
        raise BadImage(
            f"The picture is larger than the {max_image_bytes} bytes this server takes: send a smaller one.",
            param=param,
            code="image_too_large",
        )
    try:
        raw = WHITESPACE.sub(b"", encoded.encode("ascii"))
        return pybase64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except ValueError as error:
        raise BadImage("The picture's base64 data is damaged: encode the file again.", param=param) from error
