"""The fleet's TOML file: its models and the settings of each."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llava_api.cli.wrong_settings import complaints, contradictions, flag_of
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked
from llava_api.watched_files import read_text

LISTENING = marked(Mark.PUBLIC_SERVER) - {"api_key", "api_key_file", "api_key_dir", "allowed_hosts"} | {
    *("host", "port", "unix_socket_mode", "metrics", "metrics_host", "trusted_proxies", "served_model_name")
}
"""Settings that the models' own servers do not get: they listen on private Unix sockets.

They do get the keys, so that each key's limits hold there too."""
NOT_IN_A_FLEET = {"data_dir": "a fleet stores no files; llava-api serve does"} | dict.fromkeys(
    ("lora_dir", "lora_from_hub", "lora_key"),
    'a fleet loads no adapters at run time; name them: lora = ["NAME=FOLDER"]',
)
"""Setting -> why a fleet refuses it."""
OF_FLEET = LISTENING | marked(Mark.PUBLIC_SERVER)
"""Settings that one model cannot have for itself."""

WITH_PASSWORDS = ("rate_limit_redis_url", "otlp_endpoint")
"""Settings that may contain a password. The models' servers get them as variables, because ``ps`` shows flags."""


def number_as_text(gpu: object) -> object:
    return str(gpu) if isinstance(gpu, int) else gpu


class Times(BaseModel):
    """Keys of a ``[[models]]`` table that the top of the file may have for all of them."""

    model_config = ConfigDict(strict=True)

    idle_seconds: float = Field(900, ge=0, allow_inf_nan=False)
    """Unloaded after so long without a request; 0: never."""
    load_seconds: float = Field(1800, ge=0, allow_inf_nan=False)
    """A load that takes longer has failed; 0: no limit."""


class Table(Times):
    """The keys of a ``[[models]]`` table that are not settings of ``llava-api serve``."""

    model: str = Field(min_length=1)
    """As the MODEL of ``llava-api serve``."""
    name: str = ""
    gpus: list[Annotated[str, BeforeValidator(number_as_text)]] = Field([], min_length=1)
    """As CUDA_VISIBLE_DEVICES names them; empty without a GPU."""
    exclusive: str = ""
    """Of the models with the same word, one is loaded at a time."""


class FleetModel(Table):
    settings: Settings
    """Those of the file, the command line and the environment."""
    given: dict[str, Any] = {}
    """The settings that the file and the command line give, without those of listening."""

    @property
    def names(self) -> list[str]:
        """That requests may ask for: its own and those of its LoRA adapters."""
        return [self.name, *(adapter.partition("=")[0] for adapter in self.settings.lora)]


class File(Times, extra="forbid"):
    models: list[dict[str, Any]] = Field(min_length=1)


def read_models(path: Path, given: Mapping[str, Any]) -> list[FleetModel]:
    """``given``: settings of the command line, for all models. Raises StartupError that names the model and the key."""
    try:
        file = File.model_validate(tomllib.loads(read_text(path, "the models' file")))
    except tomllib.TOMLDecodeError as error:
        raise StartupError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise StartupError(f"{path}: {first_error(error, File)}") from error
    times = file.model_dump(exclude={"models"})
    models = [read_model(path, table, times, given) for table in file.models]
    taken: set[str] = set()
    for name in (name for model in models for name in model.names):
        if name in taken:
            raise StartupError(f"{path}: the name {name} is there twice; give one of the two another (name = ...)")
        taken.add(name)
    return models


def read_model(path: Path, table: Mapping[str, Any], times: dict[str, float], given: Mapping[str, Any]) -> FleetModel:
    where = f"{path}, model {table.get('name') or table.get('model') or '(without model)'}"
    values = {key.replace("-", "_"): value for key, value in table.items()}
    own = times | {key: values.pop(key) for key in Table.model_fields if key in values}
    for key in values:
        if key in NOT_IN_A_FLEET:
            raise StartupError(f"{where}: {key}: {NOT_IN_A_FLEET[key]}")
        if key in OF_FLEET:
            raise StartupError(f"{where}: {key} is for all models together: give llava-api fleet {flag_of(key)}")
        if key not in Settings.model_fields:
            raise StartupError(f"{where}: there is no setting {key}{did_you_mean(key, Table)}")
    settings_given = {name: value for name, value in given.items() if name not in LISTENING} | values
    try:
        settings = Settings(**settings_given)
        read = FleetModel(**own, settings=settings, given={key: getattr(settings, key) for key in settings_given})
    except ValidationError as error:
        in_settings = error.title == Settings.__name__
        wrong = list(complaints(error, settings_given).values()) if in_settings else [first_error(error, Table)]
        raise StartupError(f"{where}: {'; '.join(wrong)}") from error
    if wrong := contradictions(settings):
        raise StartupError(f"{where}: {'; '.join(wrong)}")
    read.name = read.name or read.model
    return read


def first_error(error: ValidationError, table: type[BaseModel]) -> str:
    """The wrong key and the reason."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"there is no {key} at the top of the file{did_you_mean(key, table)}: settings belong below [[models]]"
    if key == "models":
        return 'write each model as a table of its own: [[models]], and below it model = "..."'
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "list_type":
        return f"{key} is a list: {key} = [{first['input']!r}]"
    return f"{key}: {first['msg']}"


def did_you_mean(key: str, table: type[BaseModel]) -> str:
    known = [*table.model_fields, *(Settings.model_fields if table is Table else ())]
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def flags_of(given: Mapping[str, Any]) -> list[str]:
    """The settings as flags of ``llava-api serve``, but for secrets, which ``ps`` would show."""
    flags: list[str] = []
    for name, value in given.items():
        if name in marked(Mark.SECRET) or name in WITH_PASSWORDS:
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return flags


def assign_gpus(models: Sequence[FleetModel], gpus: list[str]) -> None:
    """Give each model that names no GPU as many as it needs, of those that the fewest models have."""
    load = {gpu: sum(gpu in model.gpus for model in models) for gpu in gpus}
    for model in models:
        if not model.gpus:
            settings = model.settings
            count = settings.tensor_parallel_size * settings.pipeline_parallel_size * settings.data_parallel_size
            if count > len(gpus):
                raise StartupError(f"model {model.name} needs {count} GPUs, and there are {len(gpus)}")
            model.gpus = sorted(sorted(gpus, key=lambda gpu: load[gpu])[:count], key=gpus.index)
            for gpu in model.gpus:
                load[gpu] += 1
