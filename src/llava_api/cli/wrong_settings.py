"""Messages about settings: what is wrong with each, its value without secrets, and where the value comes from."""

import difflib
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked, variable_of

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
    " (Kubernetes sets this variable for a service of that name: set enableServiceLinks: false in the pod, or rename "
    "the service)"
)
PASSWORD = re.compile(r"(?<=//)\S*@")
"""User name and password of a URL. They may contain letters that no URL may, such as @ and /."""
SECRET_ARGUMENT = re.compile(r"password|secret|(token|key)(?![a-z])", re.IGNORECASE)
"""Matches names of engine arguments with a secret value: hf_token, but not max_num_batched_tokens."""
LONGEST_SHOWN = 100


def complaints(error: ValidationError, given: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> one sentence about it. ``given``: the values of the command line."""
    made: dict[str, str] = {}
    for details in error.errors(include_url=False):
        name = str(details["loc"][0]).lower().removeprefix("llava_")
        source = source_of(name, given)
        value = shown(name, details["input"])
        where = "" if source == "flag" else f" (from {source})"
        hint = KUBERNETES if value.startswith("tcp://") and source != "flag" else ""
        made.setdefault(name, f"{flag_of(name)} {value}{where}: {plain(details)}{hint}")
    return made


def plain(details: Mapping[str, Any]) -> str:
    """One of pydantic's errors in plain words."""
    kind: str = details["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**details.get("ctx", {}))
    for start, words in KINDS.items():
        if kind.startswith(f"{start}_"):
            return words
    return str(details["msg"]).removeprefix("Value error, ")


def contradictions(settings: Settings) -> list[str]:
    """Sentences about settings that would silently be ignored because of others."""
    found = []
    if settings.load_8bit and settings.load_4bit:
        found.append("--load-8bit and --load-4bit exclude each other: leave one out")
    for flag, given in (("--load-8bit", settings.load_8bit), ("--load-4bit", settings.load_4bit)):
        if given and settings.quantization is not None:
            found.append(f"{flag} and --quantization {settings.quantization} exclude each other: leave one out")
    for text in settings.engine_arg:
        name = text.partition("=")[0].strip().removeprefix("--").replace("-", "_")
        if name in Settings.model_fields:
            # As an engine argument it would escape the setting's bounds, and override its value.
            found.append(f"--engine-arg {name}: this has its own flag, {flag_of(name)}; use that")
    return found


def unknown_variables(environment: Collection[str]) -> dict[str, str]:
    """Variables that look like ours but set nothing -> the one that was probably meant."""
    known = [variable_of(name) for name in Settings.model_fields]
    found = {}
    for name in environment:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name.startswith("LLAVA_") and name not in known and near:
            found[name] = near[0]
    return found


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def source_of(name: str, given: Mapping[str, Any]) -> str:
    """Where a setting's value comes from: ``flag``, the name of a variable, or ``default``. ``given``: the flags."""
    if name in given:
        return "flag"
    # Like pydantic-settings: upper and lower case are equal, and an empty variable counts as unset.
    found = (variable for variable, text in os.environ.items() if variable.upper() == variable_of(name) and text)
    return next(found, "default")


def shown(name: str, value: object) -> str:
    """The value for a terminal, shortened, without keys and without passwords in URLs."""
    if name in marked(Mark.SECRET):
        count = len(value) if isinstance(value, list) else 1 if value else 0
        return f"({count} not shown)" if value else ""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    text = ",".join(shown_part(name, str(part)) for part in parts)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def shown_part(name: str, text: str) -> str:
    argument, equals, _ = text.partition("=")
    if name == "engine_arg" and equals and SECRET_ARGUMENT.search(argument):
        return f"{argument}=..."
    return PASSWORD.sub("...@", text)
