"""API keys: read from settings, files and folders, held as hashes, read again when they change.

A key is a secret of our making (``llava-api keys new``, 256 random bits), so one round of SHA-256 is enough: there is
nothing to guess. A presented key is compared with all of them in constant time, whichever fits.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_api.errors import StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

PREFIX = "sk-llava-"
HASHED = "sha256:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    """Of whom it was given to; stands in logs and metrics."""
    digest: bytes
    """SHA-256 of the key."""


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """How a key is written in a file that others may read."""
    return HASHED + digest_of(key).hex()


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_key(name: str, secret: str, where: str) -> Key:
    """Raises StartupError, which never shows the secret."""
    if not NAME.fullmatch(name):
        raise StartupError(f"{where}: a key's name has up to 64 letters, digits, dots, dashes and underscores")
    if secret.startswith(HASHED):
        if not DIGEST.fullmatch(secret.removeprefix(HASHED)):
            raise StartupError(f"{where}: the hash of key {name} is not sha256: and 64 hexadecimal digits")
        return Key(name, bytes.fromhex(secret.removeprefix(HASHED)))
    if len(secret) < 16 or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise StartupError(
            f"{where}: key {name} is no key: it needs 16 printable letters or more, without spaces; "
            "llava-api keys new makes one"
        )
    return Key(name, digest_of(secret))


class KeySources:
    """Where the keys of a server come from."""

    def __init__(self, settings: Settings) -> None:
        self.given = settings.api_key
        self.files = [Path(path).expanduser() for path in settings.api_key_file]
        self.folders = [Path(path).expanduser() for path in settings.api_key_dir]

    @property
    def any(self) -> bool:
        """Whether keys are wanted, be there none in them now."""
        return bool(self.given or self.files or self.folders)

    def read(self) -> tuple[Key, ...]:
        """Raises StartupError for what cannot be read or is no key, and for a name that is given twice."""
        found: dict[str, Key] = {}
        for key in self.each():
            if key.name in found:
                raise StartupError(f"API keys: the name {key.name} is given twice")
            found[key.name] = key
        return tuple(found.values())

    def each(self) -> Iterator[Key]:
        for place, text in enumerate(self.given, start=1):
            name, equals, secret = text.partition("=")
            yield read_key(*((name, secret) if equals else (f"key-{place}", text)), "--api-key")
        for path in self.files:
            yield from read_lines(path)
        for path in self.folders:
            for entry in contents(path):
                yield read_key(entry.name, text_of(entry).strip(), str(entry))


def contents(folder: Path) -> Sequence[Path]:
    """Its files. Kubernetes keeps the real ones of a mounted secret in folders that start with dots."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file())
    except OSError as error:
        raise StartupError(f"--api-key-dir {folder}: {error.strerror}") from error


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"API keys in {path} cannot be read: {getattr(error, 'strerror', 'not text')}") from error


def read_lines(path: Path) -> Iterator[Key]:
    """``name=key`` or ``name=sha256:...`` a line; empty lines and those that start with # are left out."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, secret = line.strip().partition("=")
            if not equals:
                raise StartupError(f"{path}, line {number}: write it as name=key")
            yield read_key(name.strip(), secret.strip(), f"{path}, line {number}")


class KeyRing:
    """The keys of now. Raises StartupError where they cannot be read at the start."""

    def __init__(self, sources: KeySources) -> None:
        self.sources = sources
        self.keys = sources.read()
        self.needed = sources.any
        """Whether a request needs one; false only where no source of keys was named."""
        self.complaint = ""
        """About the sources as they are now: it is told once, and not with each look."""

    def find(self, presented: str) -> str | None:
        """The name of the key; None where there is no such key. Takes as long for each."""
        digest = digest_of(presented)
        name = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                name = key.name
        return name

    def refresh(self) -> None:
        """Read them again. Where that fails, those of before stay, and the log says why."""
        try:
            keys = self.sources.read()
        except StartupError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                log.error("the API keys stay as they were: %s", error)
            return
        self.complaint = ""
        if keys != self.keys:
            log.info("API keys read again: %s", ", ".join(key.name for key in keys) or "none")
            self.keys = keys
