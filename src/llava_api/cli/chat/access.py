"""Where the server is, and with which key it is asked. The key is never shown."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from llava_api.errors import StartupError
from llava_api.limits.keys import HASHED
from llava_api.web_origins import is_loopback

BASE_URL = "http://127.0.0.1:8000/v1"
NO_KEY = "none"
"""What is sent to a server that asks for none: the client wants to send something."""


def base_url_of(given: str | None) -> str:
    """The flag over the environment over this machine's server."""
    return given or os.environ.get("OPENAI_BASE_URL") or BASE_URL


def shown(base_url: str) -> str:
    """For people: without a name and a password in it."""
    return re.sub("//[^/]*@", "//", base_url, count=1)


def is_here(base_url: str) -> bool:
    """Whether the server is on this machine."""
    try:
        return is_loopback(urlsplit(base_url).hostname or "")
    except ValueError:
        return False


def key_of(file: str | None) -> str:
    """The key in ``file``, else of the environment. Raises StartupError for a file that has none."""
    if file:
        return key_in_file(Path(os.path.expanduser(file)))
    ours = os.environ.get("LLAVA_API_KEY", "")
    return first_key(ours.split(",")) or checked(os.environ.get("OPENAI_API_KEY", "").strip()) or NO_KEY


def key_in_file(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise StartupError(f"--api-key-file {path} cannot be read ({reason})") from error
    key = first_key(lines)
    if key is None:
        raise StartupError(
            f"--api-key-file {path} holds no key (a hash is not enough: llava-api keys new showed the key itself, once)"
        )
    return key


def first_key(lines: Iterable[str]) -> str | None:
    """A key alone, or in the server's form ``name=key``; comments and hashes are left out."""
    for line in lines:
        text = line.strip()
        _, _, named = text.partition("=")
        key = named.strip() or text
        if key and not key.startswith("#") and not text.startswith("#") and not key.startswith(HASHED):
            return checked(key)
    return None


def checked(key: str) -> str:
    """The same. Raises StartupError for one that could not be sent: the complaint about that would show it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise StartupError("the API key has letters that no key has: is it the right file or variable?")
    return key
