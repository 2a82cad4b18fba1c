"""Image files of training data: their sizes, quickly, and what the model is shown of them."""

import os
import stat
from pathlib import Path

from llava_api.errors import BadImage
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import BadSample
from llava_api.images.decode import decode, read_header
from llava_api.images.load import ImagePart, MeasuredImage, RenderedImage, measured_image, rendered_image
from llava_api.vision.geometry import Size

HEADS, TAIL = (16_384, 262_144), 1024
"""Bytes read of a JPEG or PNG file's beginning, more if they hold no whole header, and of its end."""
ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG", b"IEND"))
"""(first bytes, what is near the end of a whole file)."""


def image_size(path: Path, model: ModelInput) -> Size:
    """(width, height) as the model is shown it. Raises BadSample.

    Of a JPEG or PNG that ends as it should, only the two ends are read. Any other file is decoded, so that one that
    was cut off is found.
    """
    try:
        # A pipe or a device might never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadSample(f"has an image that is not a regular file: {path}")
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL, 0))
            tail = file.read()
            for length in HEADS:
                file.seek(0)
                head = file.read(length)
                if not any(head.startswith(start) and end in tail for start, end in ENDS):
                    break
                try:
                    header = read_header(head, model.limits)
                    return header.upright_size() if model.mode.upright else header.stored_size
                except BadImage:
                    continue
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = read_header(data, model.limits)
        decode(data, needed=(1, 1), size=header.stored_size)
    except BadImage as error:
        raise damaged(path, error) from error
    return header.upright_size() if model.mode.upright else header.stored_size


def read_image(path: Path, model: ModelInput) -> MeasuredImage:
    """Raises BadSample."""
    try:
        return measured_image(path.read_bytes(), ImagePart(str(path), str(path)), model.mode, model.limits)
    except OSError as error:
        raise unreadable(path, error) from error
    except BadImage as error:
        raise damaged(path, error) from error


def render_image(image: MeasuredImage, model: ModelInput) -> RenderedImage:
    """Raises BadSample."""
    try:
        return rendered_image(image, model.settings.jpeg_decode == "scaled")
    except BadImage as error:
        raise damaged(image.param, error) from error


def unreadable(path: Path, error: OSError) -> BadSample:
    return BadSample(f"has an image that cannot be read: {path} ({error.strerror})")


def damaged(path: Path | str, error: BadImage) -> BadSample:
    return BadSample(f"has a bad image, {path}: {error.message}")
