"""Sizes of image files from their headers, for checking hundreds of thousands before training."""

import os
from pathlib import Path

from llava_api.errors import BadImage
from llava_api.finetune.samples import BadSample
from llava_api.images.decode import Limits, decode, read_header
from llava_api.vision.geometry import Size

HEAD, TAIL = 65536, 1024
"""Bytes read of a JPEG or PNG file's beginning and end."""
ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG", b"IEND"))
"""(first bytes, what is near the end of a whole file)."""


def image_size(path: Path, limits: Limits, upright: bool) -> Size:
    """(width, height) as the model is shown it. Raises BadSample.

    Of a JPEG or PNG that ends as it should, only the two ends are read. Any other file is decoded, so that one that
    was cut off is found.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            rest = os.fstat(file.fileno()).st_size - len(head)
            if rest:
                file.seek(max(-TAIL, -rest), os.SEEK_END)
            tail = file.read() if rest else head[-TAIL:]
            if any(head.startswith(start) and end in tail for start, end in ENDS):
                try:
                    header = read_header(head, limits)
                    return header.upright_size() if upright else header.stored_size
                except BadImage:
                    # The header may be longer.
                    pass
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise BadSample(f"has an image that cannot be read: {path} ({error.strerror})") from error
    try:
        header = read_header(data, limits)
        decode(data, header.orientation, size=header.stored_size, needed=(1, 1))
    except BadImage as error:
        raise BadSample(f"has a bad image: {path}. {error.message}") from error
    return header.upright_size() if upright else header.stored_size
