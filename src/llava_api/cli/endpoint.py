"""Where an OpenAI-compatible API is, and the key for it. No message shows a key or a password."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llava_api.errors import StartupError
from llava_api.limits.keys import HASHED
from llava_api.web_origins import is_loopback

BASE_URL = "http://127.0.0.1:8000/v1"
NO_KEY = "none"
"""Sent to a server that needs no key: the client library insists on one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    base_url: str
    key: str
    model: str | None
    """None for the first model that the server lists."""


def base_url_from(flag: str | None) -> str:
    """The flag, else the environment's base URL, else that of a server on this machine."""
    return flag or os.environ.get("OPENAI_BASE_URL") or BASE_URL


def is_web_address(base_url: str) -> bool:
    return base_url.lower().startswith(("http://", "https://"))


def without_password(base_url: str) -> str:
    return re.sub("//[^/]*@", "//", base_url, count=1)


def is_on_this_machine(base_url: str) -> bool:
    try:
        return is_loopback(urlsplit(base_url).hostname or "")
    except ValueError:
        return False


def find_key(file: str | None) -> str:
    """The key in ``file``, else the environment's, else ``NO_KEY``. Raises StartupError for a file without one."""
    if file:
        return key_in_file(Path(os.path.expanduser(file)))
    server_keys = os.environ.get("LLAVA_API_KEY", "").split(",")
    return first_key(server_keys) or checked(os.environ.get("OPENAI_API_KEY", "").strip()) or NO_KEY


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
    """The first key, written as ``key`` or, as for the server, as ``name=key``; skips comments and hashes."""
    for line in lines:
        text = line.strip()
        _, _, named = text.partition("=")
        key = named.strip() or text
        if key and not key.startswith("#") and not text.startswith("#") and not key.startswith(HASHED):
            return checked(key)
    return None


def checked(key: str) -> str:
    """Return ``key``. Raises StartupError if it cannot be sent: the HTTP library's own error would show it."""
    if not can_be_sent(key):
        raise StartupError("the API key has letters that no key has: is it the right file or variable?")
    return key


def can_be_sent(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key
