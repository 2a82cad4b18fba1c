"""What a person names as a picture -> what is sent: files as they are, in data: URLs; web addresses as addresses."""

import base64
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from llava_api.errors import BadImage, StartupError
from llava_api.images.miniature import media_type

MAX_BYTES = 256 * 1024 * 1024
"""Of one picture. The server has a limit of its own; this one is for /dev/zero."""


@dataclass(frozen=True, slots=True)
class Picture:
    label: str
    """For people."""
    url: str
    data: bytes | None
    """The file; None where only the server gets to see it."""


def open_picture(named: str) -> Picture:
    """A file, ``-`` for standard input, or a http:, https:, file: or data: URL. Raises StartupError."""
    if named.lower().startswith(("http://", "https://", "file:")):
        return Picture(named, named, None)
    if named.lower().startswith("data:"):
        return Picture("the picture of a data: URL", named, None)
    label = "standard input" if named == "-" else named
    data = read(named)
    if not data:
        raise StartupError(f"{label} is empty: a picture was expected")
    try:
        kind = media_type(data)
    except BadImage as error:
        raise StartupError(f"{label}: {error.message}") from error
    return Picture(label, f"data:{kind};base64,{base64.b64encode(data).decode()}", data)


def read(named: str) -> bytes:
    try:
        if named == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(os.path.expanduser(named), "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        # A text with a zero byte in it is a ValueError.
        reason = getattr(error, "strerror", None) or "that cannot be a file's name"
        raise StartupError(f"the picture {named} cannot be read ({reason})") from error
    if len(data) > MAX_BYTES:
        raise StartupError(f"the picture {named} has more than {MAX_BYTES // 1024**2} MiB: scale it down")
    return data


def names_in(text: str) -> list[str]:
    """What /image was given: one name with spaces in it, or several, with quotes as in a shell.

    Terminals put quotes or backslashes into names that are dropped on them.
    """
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:
        # A quote that is never closed belongs to the name.
        return [text]


def path_in(text: str) -> Path:
    """What /save and /load were given: one name, which may have spaces in it, or quotes and backslashes as above."""
    names = names_in(text)
    return Path(os.path.expanduser(names[0] if len(names) == 1 else text))
