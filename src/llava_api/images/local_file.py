"""Images on the server's disk: uploaded files, and ``file://`` URLs, which name files in the folders that the operator
allows."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llava_api.errors import BadImage, ErrorCode
from llava_api.images.source import ByteBudget

NONE_ALLOWED = "This server reads no local files: send the image itself as a base64 data: URL."
NOT_THERE = "This server has no image at that path: name a file in one of the folders that it may read."

NONE_STORED = "This server stores no files (it was started without --data-dir): send the image itself, as image_url."


def not_stored() -> BadImage:
    """The same for another caller's file as for none. Without ``param``."""
    return BadImage(
        "You have no image of that id here: upload it again, with the purpose vision.", code=ErrorCode.FILE_NOT_FOUND
    )


def read_stored(path: Path, budget: ByteBudget) -> bytes:
    """The bytes of an uploaded file. Raises BadImage, without ``param``, and Busy."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            budget.fetch(size)
            return file.read(size)
    except FileNotFoundError as error:
        # It has been deleted since it was looked up.
        raise not_stored() from error


def inside(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders)


def read_local_file(url: str, folders: Sequence[str], budget: ByteBudget) -> bytes:
    """The bytes of the file that a ``file://`` URL names.

    The error for a missing file and for one that may not be read is the same, so that it does not show what is in
    other folders. Raises BadImage, without ``param``, and Busy.
    """
    if not folders:
        raise BadImage(NONE_ALLOWED, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
    try:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise BadImage(NOT_THERE, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
        # Symbolic links are followed first: what counts is where the file really is.
        path = Path(unquote(parts.path)).resolve(strict=True)
        if not inside(path, folders):
            raise BadImage(NOT_THERE, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
        # O_NONBLOCK: a named pipe would wait for its writer. O_NOFOLLOW: the file may have become a link by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            # On Linux the opened file is checked again: a folder of its path may have become a link.
            opened = Path(f"/proc/self/fd/{descriptor}")
            if not stat.S_ISREG(status.st_mode) or (opened.exists() and not inside(opened.resolve(), folders)):
                raise BadImage(NOT_THERE, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
            budget.fetch(status.st_size)
            return file.read(status.st_size)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadImage(NOT_THERE, code=ErrorCode.IMAGE_URL_NOT_ALLOWED) from error
