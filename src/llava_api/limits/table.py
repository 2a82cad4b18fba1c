"""What each caller may: the settings' defaults, and what a file says of single keys otherwise.

The file is read again while the server runs; a broken one changes nothing.
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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Of one caller; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    images_per_minute: int | None = None
    max_requests_at_once: int | None = None
    max_tokens_per_request: int | None = None
    weight: float = 1.0
    """Of its turns in front of the engine."""


Count = Annotated[int, Field(ge=1, le=MOST_COUNTED)] | Literal["none"] | None
CountOrNothing = Annotated[int, Field(ge=0, le=MOST_COUNTED)] | Literal["none"] | None
Weight = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]


class KeyLimits(BaseModel):
    """One table of the file: what is not named is as for all callers, "none" is no limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: Count = None
    tokens_per_minute: Count = None
    images_per_minute: CountOrNothing = None
    max_requests_at_once: Count = None
    max_tokens_per_request: Count = None
    weight: Weight | None = None

    def over(self, default: CallerLimits) -> CallerLimits:
        given = self.model_dump(exclude_none=True).items()
        said: dict[str, Any] = {name: None if value == "none" else value for name, value in given}
        return replace(default, **said)


def caller_of_key(name: str) -> str:
    """How a key's owner is called where callers are told apart; no address looks like it."""
    return f"key {name}"


class LimitTable:
    """The limits of now. Raises StartupError where the file cannot be read at the start."""

    def __init__(self, settings: Settings) -> None:
        self.default = CallerLimits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.images_per_minute,
            settings.max_requests_at_once,
            settings.max_tokens_per_request,
        )
        self.file = None if settings.key_limits_file is None else Path(settings.key_limits_file).expanduser()
        self.text = "" if self.file is None else text_of(self.file)
        """Of the file, as it was read last without a fault."""
        self.by_caller = self.read(self.text)
        self.complaint = ""
        """About the file as it is now: it is told once, and not with each look."""

    def of(self, caller: str) -> CallerLimits:
        return self.by_caller.get(caller, self.default)

    def read(self, text: str) -> Mapping[str, CallerLimits]:
        """Raises StartupError, naming the file, the key and the field."""
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise StartupError(f"--key-limits-file {self.file} is not TOML: {error}") from error
        found = {}
        for name, table in tables.items():
            try:
                found[caller_of_key(name)] = KeyLimits.model_validate(table).over(self.default)
            except ValidationError as error:
                raise StartupError(f"--key-limits-file {self.file}, key {name}{complaint(error)}") from error
        return found

    def refresh(self) -> None:
        """Read the file again. Where that fails, the limits of before stay, and the log says why, once."""
        if self.file is None:
            return
        try:
            text = text_of(self.file)
            if text == self.text:
                self.complaint = ""
                return
            self.by_caller = self.read(text)
        except StartupError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                log.error("the limits of keys stay as they were: %s", error)
            return
        self.text, self.complaint = text, ""
        log.info("limits of keys read again: %s", ", ".join(self.names()) or "none")

    def names(self) -> list[str]:
        """Of the keys that the file speaks of."""
        return [caller.removeprefix(caller_of_key("")) for caller in self.by_caller]

    def warn_of_strangers(self, keys: Iterable[str]) -> None:
        """Say which names of the file no key has: most likely one of them is misspelt."""
        strangers = sorted(set(self.names()) - set(keys))
        if strangers:
            log.warning("--key-limits-file speaks of keys that there are not: %s", ", ".join(strangers))


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartupError(f"--key-limits-file {path} cannot be read: {reason}") from error


def complaint(error: ValidationError) -> str:
    """The field that is wrong and why; of a field that may be a number or "none" what is wrong with the number."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        return f", {first['loc'][0]}: there is no such limit; there are {', '.join(KeyLimits.model_fields)}"
    field = f", {first['loc'][0]}" if first["loc"] else ""
    return f"{field}: {first['msg']}"
