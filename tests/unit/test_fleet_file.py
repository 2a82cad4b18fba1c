"""The fleet's TOML file, and what a model's server gets of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from llava_api.cli.flags import given_flags, read_settings
from llava_api.cli.fleet.child import environment
from llava_api.cli.fleet.models_file import FleetModel, assign_gpus, flags_of, read_models
from llava_api.cli.main import build_parser
from llava_api.errors import StartupError


def read(tmp_path: Path, text: str, **given: Any) -> list[FleetModel]:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return read_models(file, given)


def test_the_smallest_file(tmp_path: Path) -> None:
    (model,) = read(tmp_path, '[[models]]\nmodel = "llava-tiny-1.5"')
    assert (model.name, model.model) == ("llava-tiny-1.5", "llava-tiny-1.5")
    assert (model.idle_seconds, model.load_seconds) == (900, 1800)


def test_settings_have_the_names_of_flags_and_win_over_the_command_line(tmp_path: Path) -> None:
    text = """
    idle_seconds = 60
    load_seconds = 600
    [[models]]
    name = "a"
    model = "org/a"
    max-model-len = 2048
    load_4bit = true
    lora = ["birds=/adapters/birds", "fish=/adapters/fish"]
    [[models]]
    name = "b"
    model = "org/b"
    idle_seconds = 0
    fetch_images = false
    """
    a, b = read(tmp_path, text, max_model_len=1024, max_num_seqs=4, port=9000)
    assert (a.settings.max_model_len, a.settings.max_num_seqs, a.settings.load_4bit) == (2048, 4, True)
    assert (a.idle_seconds, b.idle_seconds, b.load_seconds) == (60, 0, 600)
    assert a.names == ["a", "birds", "fish"]
    assert b.settings.max_model_len == 1024
    assert not b.settings.fetch_images


def test_the_flags_give_a_server_the_same_settings(tmp_path: Path) -> None:
    text = """
    [[models]]
    model = "m"
    max_model_len = 2048
    restart_engine = true
    fetch_images = false
    engine_arg = ['mm_processor_kwargs={"a": 1, "b": 2}', "swap=-1"]
    allowed_media_cidrs = ["10.0.0.0/8"]
    cors_allow_origins = "https://a.example,https://b.example"
    """
    (model,) = read(tmp_path, text)
    chosen = build_parser().parse_args(["serve", "m", *flags_of(model.given)])
    assert set(given_flags(chosen)) == set(model.given)
    assert read_settings(chosen) == model.settings


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("max_model_length = 5", "there is no setting max_model_length; did you mean max_model_len?"),
        ("gpu = [0]", "there is no setting gpu; did you mean gpus?"),
        ("max_model_len = 'many'", "--max-model-len many: must be a whole number"),
        ("load_4bit = true\nload_8bit = true", "--load-8bit and --load-4bit exclude each other"),
        ("port = 8001", "port is for all models together: give llava-api fleet --port"),
        ("api_key = ['a=b']", "api_key is for all models together: give llava-api fleet --api-key"),
        ("gpus = 0", "gpus is a list: gpus = [0]"),
        ("gpus = []", "gpus: List should have at least 1 item"),
        ("data_dir = '/data'", "data_dir: a fleet stores no files; llava-api serve does"),
        (
            "lora_dir = ['/adapters']",
            'lora_dir: a fleet loads no adapters at run time; name them: lora = ["NAME=FOLDER"]',
        ),
        ("idle_seconds = -1", "idle_seconds: Input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_is_named_with_its_model(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(StartupError) as raised:
        read(tmp_path, f"[[models]]\nmodel = 'org/m'\n{table}")
    assert str(raised.value).startswith(f"{tmp_path / 'models.toml'}, model org/m: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 1", "write each model as a table of its own: [[models]]"),
        ("[[models]]\nname = 'a'", "model a: model is missing"),
        ("idle_second = 1\n[[models]]\nmodel = 'a'", "there is no idle_second at the top of the file"),
        ("[[models]]\nmodel = 'a'\n[[models]]\nmodel = 'a'", "the name a is there twice"),
        ("[[models]", "is not TOML"),
        ("", "write each model as a table of its own: [[models]]"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError, match=re.escape(message)):
        read(tmp_path, text)


def test_models_without_gpus_are_spread_over_those_of_the_machine(tmp_path: Path) -> None:
    text = """
    [[models]]
    model = "a"
    gpus = [3, "GPU-5"]
    [[models]]
    model = "b"
    tensor_parallel_size = 2
    [[models]]
    model = "c"
    [[models]]
    model = "d"
    """
    models = read(tmp_path, text)
    assign_gpus(models, ["0", "1", "2", "3"])
    assert [model.gpus for model in models] == [["3", "GPU-5"], ["0", "1"], ["2"], ["0"]]
    models[1].gpus = []
    with pytest.raises(StartupError, match="model b needs 2 GPUs, and there are 1"):
        assign_gpus(models, ["0"])


def test_a_server_sees_its_gpus_and_keys_but_not_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "9000")
    monkeypatch.setenv("LLAVA_MAX_NUM_SEQS", "3")
    (model,) = read(tmp_path, '[[models]]\nmodel = "a"\ngpus = [1, 2]', api_key=["me=sk-1", "you=sk-2"])
    found = environment(model, tmp_path / "news", ["me=sk-1", "you=sk-2"], "fleet+unix:///counts")
    assert found["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert found["LLAVA_API_KEY"] == "me=sk-1,you=sk-2"
    assert found["LLAVA_MAX_NUM_SEQS"] == "3"
    assert "LLAVA_PORT" not in found
    assert found["LLAVA_RATE_LIMIT_REDIS_URL"] == "fleet+unix:///counts"
    assert not [flag for flag in flags_of(model.given) if "sk-1" in flag]


def test_the_help_shows_the_flags_of_the_address_and_where_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["fleet", "--help"])
    shown = capsys.readouterr().out
    assert "--port" in shown
    assert "--max-model-len" not in shown
    assert "Other flags of llava-api serve are settings of all models" in shown
    chosen = build_parser().parse_args(["fleet", "models.toml", "--max-model-len", "64"])
    assert given_flags(chosen)["max_model_len"] == "64"


def test_no_password_is_in_the_list_of_processes(tmp_path: Path) -> None:
    url = "redis://:a-password@limits:6379/0"
    (model,) = read(tmp_path, f'[[models]]\nmodel = "a"\nrate_limit_redis_url = "{url}"\nrequests_per_minute = 5')
    assert flags_of(model.given) == ["--requests-per-minute=5"]
    assert environment(model, tmp_path / "news", [], "fleet+unix:///counts")["LLAVA_RATE_LIMIT_REDIS_URL"] == url
