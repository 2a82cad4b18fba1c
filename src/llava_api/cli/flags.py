"""The MODEL argument, and flags made from the settings: one for each field, with its docstring as the help."""

import argparse
import types
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llava_api.cli.wrong_settings import complaints, contradictions, flag_of
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked

DEMO = "llava-tiny-1.5"
MODEL_HELP = "checkpoint folder, hub id, GGUF file, or a bundled demo: llava-tiny-1.5 (the default), llava-tiny-1.6"

FRONT_SETTINGS = (
    *("host", "port", "unix_socket", "unix_socket_mode", "root_path", "trusted_proxies", "log_level", "log_format"),
    *("api_key", "api_key_file", "api_key_dir", "make_key", "allow_anonymous", "cors_allow_origins", "allowed_hosts"),
    *("tls_certificate_file", "tls_key_file", "tls_client_ca_file", "metrics", "metrics_port", "metrics_host"),
    *("any_model", "ollama_api", "short_paths", "accept_request_ids", "drain_timeout_seconds"),
    *("request_timeout_seconds", "stream_head_seconds", "stream_keep_alive_seconds"),
    *("max_body_bytes", "max_inflight_bytes", "max_connections", "max_header_bytes", "receive_timeout_seconds"),
    *("body_timeout_seconds", "reader_timeout_seconds", "keep_alive_seconds"),
)
"""What concerns a server in front of the models' own, as ``llava-api route`` is one."""


def demo_folder() -> Path:
    return Path(str(resources.files("llava_api") / "demo"))


def find_model(model: str) -> str:
    """The bundled folder if ``model`` is the name of a demo, else ``model``."""
    if "/" not in model and model in {folder.name for folder in demo_folder().iterdir() if folder.is_dir()}:
        return model if Path(model).is_dir() else str(demo_folder() / model)
    return model


def add_flags(parser: argparse.ArgumentParser, *marks: Mark, names: Collection[str] = (), shown: bool = True) -> None:
    """Add a flag for each setting of ``names`` or with one of ``marks``, or for all settings without either.

    ``shown``: whether --help has them.
    """
    names = {*names, *marked(*marks)} or Settings.model_fields
    for name, field in Settings.model_fields.items():
        if name not in names:
            continue
        add_flag(parser, name, field, shown=shown)


def add_flag(
    parser: "argparse._ActionsContainer", name: str, field: FieldInfo, *, shown: bool = True, dest: str | None = None
) -> None:
    """A flag for a field of a pydantic model, with its docstring as the help. Not given, its value is None."""
    text = help_text(field) if shown else argparse.SUPPRESS
    options: dict[str, Any] = {"dest": dest or name, "default": None, "help": text}
    kind = plain_type(field.annotation)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is list:
        options.update(action="append", metavar="VALUE")
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["metavar"] = kind.__name__.upper()
    parser.add_argument(flag_of(name), **options)


def plain_type(annotation: Any) -> Any:
    """``Annotated[int, ...] | None`` -> ``int``."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(member for member in get_args(annotation) if member is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def help_text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("%", "%%")


def read_settings(chosen: argparse.Namespace) -> Settings:
    """Flags over environment over defaults. Raises StartupError that names each wrong setting and its source."""
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
    """The settings that the command line gives. A flag with an empty text counts as not given.

    Start scripts write ``--host "$HOST"`` even if HOST is empty.
    """
    given = {name: without_empty(getattr(chosen, name, None)) for name in Settings.model_fields}
    for name in marked(Mark.LOADED_MODEL):
        if not hasattr(chosen, name):
            given[name] = Settings.model_fields[name].get_default()
    return {name: value for name, value in given.items() if value is not None}


def without_empty(value: Any) -> Any:
    if isinstance(value, list):
        value = [text for text in value if text]
    return value if value or isinstance(value, bool | int) else None
