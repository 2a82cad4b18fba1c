"""API keys, read from settings, files and folders, and kept as hashes.

A key is a secret that ``llava-api keys new`` makes from 256 random bits. It cannot be guessed, so one round of SHA-256
is enough.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.watched_files import WatchedFiles, read_text

PREFIX = "sk-llava-"
HASHED = "sha256:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
Key = tuple[str, bytes]
"""The holder's name, used in logs and metrics, and the SHA-256 of the key."""


class KeyRing(WatchedFiles[list[Key], dict[str, bytes]]):
    """The API keys that are valid now: name -> SHA-256. Raises StartupError if they cannot be read at the start."""

    plural = "API keys"

    def __init__(self, settings: Settings) -> None:
        self.given = settings.api_key
        self.files = [Path(path).expanduser() for path in settings.api_key_file]
        self.folders = [Path(path).expanduser() for path in settings.api_key_dir]
        self.needed = bool(self.given or self.files or self.folders)
        """Whether requests need a key. True also if the files hold none at the moment."""
        super().__init__()

    def find(self, presented: str) -> str | None:
        """The key's name; None for an unknown key.

        Compares with every key in constant time, so that the answer's time reveals nothing.
        """
        presented_digest = digest_of(presented)
        found = None
        for name, digest in self.value.items():
            if hmac.compare_digest(digest, presented_digest):
                found = name
        return found

    def names(self) -> Iterable[str]:
        return self.value

    def read(self) -> list[Key]:
        found = []
        for place, text in enumerate(self.given, start=1):
            name, equals, secret = text.partition("=")
            found.append(read_key(*((name, secret) if equals else (f"key-{place}", text)), "--api-key"))
        for path in self.files:
            found += read_lines(path)
        for folder in self.folders:
            for path in files_in(folder):
                found.append(read_key(path.name, read_text(path, "--api-key-dir").strip(), str(path)))
        return found

    def make(self, contents: list[Key]) -> dict[str, bytes]:
        """Raises StartupError if two keys have the same name."""
        made: dict[str, bytes] = {}
        for name, digest in contents:
            if name in made:
                raise StartupError(f"API keys: the name {name} is given twice")
            made[name] = digest
        return made


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """The form of a key for a file that other people may read."""
    return HASHED + digest_of(key).hex()


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_key(name: str, secret: str, where: str) -> Key:
    """Raises StartupError, whose message never contains the secret."""
    if not NAME.fullmatch(name):
        raise StartupError(f"{where}: a key's name has up to 64 letters, digits, dots, dashes and underscores")
    if secret.startswith(HASHED):
        if not DIGEST.fullmatch(secret.removeprefix(HASHED)):
            raise StartupError(f"{where}: the hash of key {name} is not sha256: and 64 hexadecimal digits")
        return name, bytes.fromhex(secret.removeprefix(HASHED))
    if len(secret) < 16 or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise StartupError(
            f"{where}: key {name} is invalid: it needs at least 16 printable ASCII characters and no spaces. "
            "llava-api keys new makes one."
        )
    return name, digest_of(secret)


def files_in(folder: Path) -> Sequence[Path]:
    """The files that do not begin with a dot: Kubernetes keeps a mounted secret's real files in such folders."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise StartupError(f"--api-key-dir {folder}: {error.strerror}") from error


def plain_key(place: Path) -> str:
    """The key in a file, or the first one in a folder that is not kept as a hash. Raises StartupError."""
    for path in files_in(place) if place.is_dir() else [place]:
        key = read_text(path, "API key").strip()
        if not key.startswith(HASHED):
            read_key("router", key, str(path))
            return key
    raise StartupError(f"{place} has no API key that is not a hash: name a file with one")


def read_lines(path: Path) -> Iterator[Key]:
    """Read ``name=key`` or ``name=sha256:...`` lines; skip empty lines and those that start with #."""
    for number, line in enumerate(read_text(path, "--api-key-file").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, secret = line.strip().partition("=")
            if not equals:
                raise StartupError(f"{path}, line {number}: write it as name=key")
            yield read_key(name.strip(), secret.strip(), f"{path}, line {number}")
