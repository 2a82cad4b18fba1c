"""Settings fields -> command-line flags; one flag a field, its docstring the help."""

import argparse
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llava_api.cli.wrong_settings import complaints, contradictions
from llava_api.errors import StartupError
from llava_api.settings import Settings

OF_A_LOADED_MODEL: dict[str, Any] = {"lora": [], "load_8bit": False, "load_4bit": False}
"""Settings that may forbid to load a model. A command that has no flags for them loads none, and leaves the variables
that are there for a server aside."""


def add_flags(parser: argparse.ArgumentParser, only: Sequence[str] | None = None) -> None:
    """A flag for each setting, or for those named in ``only``."""
    for name, field in Settings.model_fields.items():
        if only is not None and name not in only:
            continue
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"dest": name, "default": None, "help": help_text(field)}
        kind = plain_type(field.annotation)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is list:
            options.update(action="append", metavar="VALUE")
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["metavar"] = kind.__name__.upper()
        parser.add_argument(flag, **options)


def plain_type(annotation: Any) -> Any:
    """``int | None`` -> ``int``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(member for member in get_args(annotation) if member is not type(None))
    return annotation


def help_text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("%", "%%")


def read_settings(chosen: argparse.Namespace) -> Settings:
    """Flags over environment over defaults. Raises StartupError that names what is wrong, and where it comes from.

    A flag without a text is one that was not given: start scripts write ``--host "$HOST"``.
    """
    given = given_flags(chosen)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise StartupError("; ".join(complaints(error, given).values())) from error
    wrong = contradictions(settings)
    if wrong:
        raise StartupError("; ".join(wrong))
    return settings


def given_flags(chosen: argparse.Namespace) -> dict[str, Any]:
    """Setting -> its value on the command line, for those that are there."""
    given = {name: without_empty(getattr(chosen, name, None)) for name in Settings.model_fields}
    given |= {name: default for name, default in OF_A_LOADED_MODEL.items() if not hasattr(chosen, name)}
    return {name: value for name, value in given.items() if value is not None}


def without_empty(value: Any) -> Any:
    """The value of a flag; None where it is empty."""
    if isinstance(value, list):
        value = [text for text in value if text]
    return value if value or isinstance(value, bool | int) else None
