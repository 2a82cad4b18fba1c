"""The limits of each caller: the settings' defaults, and other limits for single keys from a file.

The file is read again while the server runs.
"""

import logging
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from llava_api.errors import StartupError
from llava_api.settings import MOST_COUNTED, Settings
from llava_api.watched_files import WatchedFiles, read_text

log = logging.getLogger(__name__)


Limit = Annotated[int, Field(ge=1, le=MOST_COUNTED)] | None
Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)] | None


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class CallerLimits:
    """The limits of one caller; None for no limit. Raises ValidationError."""

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    images_per_minute: Count = None
    max_requests_at_once: Limit = None
    max_tokens_per_request: Limit = None
    weight: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    """Its share of the engine's queue, beside callers of weight 1."""
    max_stored_bytes: Count = None
    max_stored_files: Count = None
    max_open_batches: Count = None


KEY_PREFIX = "key "


def caller_of_key(name: str) -> str:
    """The caller's name for limits and queues; no client address looks like it."""
    return KEY_PREFIX + name


def owner_of(caller: str) -> str:
    """Whose files a caller sees: the name of its API key; "" without keys."""
    return caller.removeprefix(KEY_PREFIX) if caller.startswith(KEY_PREFIX) else ""


class LimitTable(WatchedFiles[str, Mapping[str, CallerLimits]]):
    """The limits that are valid now. Raises StartupError if the file cannot be read at the start."""

    plural = "limits of keys"

    def __init__(self, settings: Settings) -> None:
        self.default = CallerLimits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.images_per_minute,
            settings.max_requests_at_once,
            settings.max_tokens_per_request,
            max_stored_bytes=settings.max_stored_bytes,
            max_stored_files=settings.max_stored_files,
            max_open_batches=settings.max_open_batches,
        )
        self.path = None if settings.key_limits_file is None else Path(settings.key_limits_file).expanduser()
        super().__init__()

    def limits_of(self, caller: str) -> CallerLimits:
        return self.value.get(caller, self.default)

    def read(self) -> str:
        return "" if self.path is None else read_text(self.path, "--key-limits-file")

    def make(self, contents: str) -> Mapping[str, CallerLimits]:
        """Raises StartupError, naming the file, the key and the field."""
        try:
            tables = tomllib.loads(contents)
        except (ValueError, RecursionError) as error:
            raise StartupError(f"--key-limits-file {self.path} is not TOML: {error}") from error
        found = {}
        for name, table in tables.items():
            where = f"--key-limits-file {self.path}, key {name}"
            if not isinstance(table, dict):
                raise StartupError(f"{where}: write a table, [{name}], with limits in it")
            changes: dict[str, Any] = {field: None if value == "none" else value for field, value in table.items()}
            try:
                found[caller_of_key(name)] = replace(self.default, **changes)
            except ValidationError as error:
                raise StartupError(f"{where}, {first_error(error)}") from error
        return found

    def names(self) -> list[str]:
        """Names of the keys in the file."""
        return [caller.removeprefix(KEY_PREFIX) for caller in self.value]

    def warn_of_unknown_keys(self, keys: Iterable[str]) -> None:
        """Log the names in the file that belong to no key, because one of them is probably misspelt."""
        unknown = sorted(set(self.names()) - set(keys))
        if unknown:
            log.warning("--key-limits-file names unknown keys: %s", ", ".join(unknown))


def first_error(error: ValidationError) -> str:
    """The wrong field and the reason."""
    first = error.errors(include_url=False)[0]
    field = first["loc"][0]
    if first["type"] == "unexpected_keyword_argument":
        known = ", ".join(limit.name for limit in fields(CallerLimits))
        return f"{field}: there is no such limit; there are {known}"
    return f"{field}: {first['msg']}"
