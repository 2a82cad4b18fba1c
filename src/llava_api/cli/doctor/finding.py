"""What a check of the doctor found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """What was looked at, in a word or two."""
    state: State
    """warn: it may do, but will disappoint; fail: the server cannot start, or not work."""
    found: str
    advice: str = ""
    """What to do; empty where all is well."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "fail", found, advice)
