"""What is wrong with the settings, in plain words: which one, its value, where the value comes from, what it may be."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from llava_api.settings import Settings, shown, source_of, variable_names

BOUNDS = {
    "greater_than_equal": "must be {ge:g} or more",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be {le:g} or less",
    "less_than": "must be less than {lt:g}",
    "literal_error": "must be one of {expected}",
    "finite_number": "must be a number",
}
KINDS = {"int": "must be a whole number", "float": "must be a number", "bool": "must be true or false"}
KUBERNETES = (
    " (Kubernetes sets this variable for a service of that name: put enableServiceLinks: false into the pod, or name "
    "the service otherwise)"
)


def complaints(error: ValidationError, given: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> one sentence about it. ``given``: the values of the command line."""
    made: dict[str, str] = {}
    for details in error.errors(include_url=False):
        if not details["loc"]:
            # About several settings at once.
            made.setdefault("", plain(details))
            continue
        name = str(details["loc"][0]).lower().removeprefix("llava_")
        source = source_of(name, given)
        value = shown(name, details["input"])
        where = "" if source == "flag" else f" (from {source})"
        hint = KUBERNETES if value.startswith("tcp://") and source != "flag" else ""
        made.setdefault(name, f"{flag_of(name)} {value}{where}: {plain(details)}{hint}")
    return made


def plain(details: Mapping[str, Any]) -> str:
    """pydantic's complaint in plain words."""
    kind: str = details["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**details.get("ctx", {}))
    for start, words in KINDS.items():
        if kind.startswith(f"{start}_"):
            return words
    return str(details["msg"]).removeprefix("Value error, ")


def contradictions(settings: Settings) -> list[str]:
    """Settings of which one would silently be left aside."""
    found = []
    if settings.load_8bit and settings.load_4bit:
        found.append("--load-8bit and --load-4bit exclude each other: leave one out")
    if settings.load_8bit and settings.quantization is not None:
        found.append(
            f"--load-8bit and --quantization {settings.quantization} are two methods for one thing: leave one out"
        )
    for text in settings.engine_arg:
        name = text.partition("=")[0].strip().removeprefix("--").replace("-", "_")
        if name in Settings.model_fields:
            # It would get past the bounds of the setting, and leave its value aside.
            found.append(f"--engine-arg {name}: this has a flag of its own, {flag_of(name)}; use that")
    return found


def unknown_variables(environment: Collection[str]) -> dict[str, str]:
    """Variables that look like ours and set nothing -> the one that was probably meant."""
    known = variable_names()
    found = {}
    for name in environment:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name.startswith("LLAVA_") and name not in known and near:
            found[name] = near[0]
    return found


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
