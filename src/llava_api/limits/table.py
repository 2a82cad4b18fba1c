"""The limits of each caller: the settings' defaults, and other limits for single keys from a file.

The file is read again while the server runs.
"""

import logging
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_api.errors import StartupError
from llava_api.settings import MOST_COUNTED, Settings
from llava_api.watched_files import WatchedFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The limits of one caller; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    images_per_minute: int | None = None
    max_requests_at_once: int | None = None
    max_tokens_per_request: int | None = None
    weight: float = 1.0
    """Its share of the engine's queue, beside callers of weight 1."""


Count = Annotated[int, Field(ge=1, le=MOST_COUNTED)] | Literal["none"] | None
CountOrZero = Annotated[int, Field(ge=0, le=MOST_COUNTED)] | Literal["none"] | None
Weight = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]


class KeyLimits(BaseModel):
    """One table of the file. A missing field takes the default of all callers; "none" is no limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: Count = None
    tokens_per_minute: Count = None
    images_per_minute: CountOrZero = None
    max_requests_at_once: Count = None
    max_tokens_per_request: Count = None
    weight: Weight | None = None

    def over(self, default: CallerLimits) -> CallerLimits:
        given = self.model_dump(exclude_none=True).items()
        changes: dict[str, Any] = {name: None if value == "none" else value for name, value in given}
        return replace(default, **changes)


KEY_PREFIX = "key "


def caller_of_key(name: str) -> str:
    """The caller's name for limits and queues; no client address looks like it."""
    return KEY_PREFIX + name


class LimitTable:
    """The limits that are valid now. Raises StartupError if the file cannot be read at the start."""

    def __init__(self, settings: Settings) -> None:
        self.default = CallerLimits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.images_per_minute,
            settings.max_requests_at_once,
            settings.max_tokens_per_request,
        )
        self.path = None if settings.key_limits_file is None else Path(settings.key_limits_file).expanduser()
        self.watched = WatchedFiles("limits of keys", self.read, self.parse)

    def limits_of(self, caller: str) -> CallerLimits:
        return self.watched.value.get(caller, self.default)

    def refresh(self) -> None:
        if self.watched.refresh():
            log.info("limits of keys read again: %s", ", ".join(self.key_names()) or "none")

    def read(self) -> str:
        if self.path is None:
            return ""
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise StartupError(f"--key-limits-file {self.path} cannot be read: {reason}") from error

    def parse(self, text: str) -> Mapping[str, CallerLimits]:
        """Raises StartupError, naming the file, the key and the field."""
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise StartupError(f"--key-limits-file {self.path} is not TOML: {error}") from error
        found = {}
        for name, table in tables.items():
            try:
                found[caller_of_key(name)] = KeyLimits.model_validate(table).over(self.default)
            except ValidationError as error:
                raise StartupError(f"--key-limits-file {self.path}, key {name}{first_error(error)}") from error
        return found

    def key_names(self) -> list[str]:
        """Names of the keys in the file."""
        return [caller.removeprefix(KEY_PREFIX) for caller in self.watched.value]

    def warn_of_unknown_keys(self, keys: Iterable[str]) -> None:
        """Log the names in the file that belong to no key, because one of them is probably misspelt."""
        unknown = sorted(set(self.key_names()) - set(keys))
        if unknown:
            log.warning("--key-limits-file names unknown keys: %s", ", ".join(unknown))


def first_error(error: ValidationError) -> str:
    """The wrong field and the reason. If a field may be a number or "none", the reason why it is no valid number."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        return f", {first['loc'][0]}: there is no such limit; there are {', '.join(KeyLimits.model_fields)}"
    field = f", {first['loc'][0]}" if first["loc"] else ""
    return f"{field}: {first['msg']}"
