"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """What was checked, in a word or two."""
    state: State
    """warn: the server may work, but not well; fail: it cannot start or cannot work."""
    found: str
    advice: str = ""
    """What to do; empty if nothing is."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "fail", found, advice)
