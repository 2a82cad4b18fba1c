"""Settings: the README's table, the flags, the environment."""

import pytest

from llava_api.cli.flags import read_settings
from llava_api.cli.main import build_parser
from llava_api.engine.base import ModelToLoad
from llava_api.engine.vllm_options import engine_arguments, parse_engine_arg
from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.vision.families import LLAVA_1_5
from llava_api.vision.normalisation import CLIP


def chosen(*flags: str) -> Settings:
    return read_settings(build_parser().parse_args(["serve", "model", *flags]))


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "9001")
    assert chosen().port == 9001
    assert chosen("--port", "9002").port == 9002
    assert chosen("--served-model-name", "a", "--served-model-name", "b").served_model_name == ["a", "b"]
    monkeypatch.setenv("LLAVA_SERVED_MODEL_NAME", "c, d")
    assert chosen().served_model_name == ["c", "d"]
    assert chosen("--no-enforce-eager").enforce_eager is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", "many"), "--port"),
        (("--gpu-memory-utilization", "7"), "--gpu-memory-utilization"),
        (("--max-images-per-request", "-1"), "--max-images-per-request"),
    ],
)
def test_a_wrong_value_is_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        chosen(*flags)


def test_a_wrong_environment_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "many")
    with pytest.raises(StartupError, match="LLAVA_PORT"):
        chosen()


KNOWN = {
    *("model", "dtype", "enforce_eager", "limit_mm_per_prompt", "mm_processor_cache_gb", "disable_log_stats"),
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "seed", "trust_remote_code"),
    *("hf_overrides", "structured_outputs_config", "max_num_seqs", "block_size", "kv_cache_dtype"),
}


def arguments(settings: Settings, stored_dtype: str | None = "float16") -> dict[str, object]:
    model = ModelToLoad("m", LLAVA_1_5, CLIP, stored_dtype)
    return engine_arguments(settings, model, on_cpu=True, known=KNOWN)


def test_engine_settings_keep_vllms_names() -> None:
    made = arguments(Settings(tensor_parallel_size=2, max_num_seqs=5, engine_arg=["block-size=32"]))
    assert (made["tensor_parallel_size"], made["max_num_seqs"], made["block_size"]) == (2, 5, 32)
    assert "quantization" not in made


def test_float32_checkpoints_stay_float32() -> None:
    assert arguments(Settings(), "float32")["dtype"] == "float32"
    assert arguments(Settings(), "float16")["dtype"] == "auto"
    assert arguments(Settings(dtype="bfloat16"), "float32")["dtype"] == "bfloat16"


@pytest.mark.parametrize("text", ["block_size", "no_such_argument=1"])
def test_engine_args_are_checked(text: str) -> None:
    with pytest.raises(StartupError, match="--engine-arg"):
        parse_engine_arg(text, KNOWN)


def test_an_argument_the_installed_vllm_lacks_is_refused() -> None:
    with pytest.raises(StartupError, match="max_model_len"):
        arguments(Settings(max_model_len=100))
