"""The settings in effect with their sources, and what is wrong with them."""

import argparse
import os
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.flags import given_flags
from llava_api.cli.wrong_settings import complaints, contradictions, flag_of, shown, source_of, unknown_variables
from llava_api.settings import Settings


def read(chosen: argparse.Namespace) -> tuple[Settings, list[Finding]]:
    """The settings, with the default for each wrong one, and the findings about them."""
    given = given_flags(chosen)
    found = []
    try:
        settings = Settings(**given)
    except ValidationError as error:
        wrong = complaints(error, given)
        found = [fail("settings", text, "correct it; the checks below use its default") for text in wrong.values()]
        settings = with_defaults(given, wrong)
    found += [fail("settings", text, "the server would not start") for text in contradictions(settings)]
    for name, meant in sorted(unknown_variables(os.environ).items()):
        found.append(warn("settings", f"the variable {name} sets nothing", f"did you mean {meant}?"))
    if not found:
        found = [ok("settings", f"{len(in_effect(settings, given))} differ from their defaults")]
    return settings, found


def with_defaults(given: dict[str, Any], wrong: Collection[str]) -> Settings:
    """The settings with the default for each of ``wrong``, or all defaults if that is not enough."""
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items() if name in wrong}
    try:
        return Settings(**{**given, **defaults})
    except ValidationError:
        return Settings.model_construct()


def in_effect(settings: Settings, given: dict[str, Any]) -> list[dict[str, str]]:
    """Every setting that a flag or a variable sets, without keys."""
    made = []
    for name in Settings.model_fields:
        source = source_of(name, given)
        if source != "default":
            made.append({"setting": flag_of(name), "value": shown(name, getattr(settings, name)), "source": source})
    return made
