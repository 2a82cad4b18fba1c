"""What is wrong with the settings is told in plain words, with the value and where it comes from."""

import pytest

from llava_api.cli.flags import read_settings
from llava_api.cli.main import build_parser
from llava_api.cli.wrong_settings import shown, source_of, unknown_variables
from llava_api.errors import StartupError
from llava_api.settings import Settings


def complaint(*flags: str) -> str:
    with pytest.raises(StartupError) as raised:
        read_settings(build_parser().parse_args(["serve", "model", *flags]))
    return str(raised.value)


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("MAX_NUM_SEQS", "0", "--max-num-seqs 0 (from LLAVA_MAX_NUM_SEQS): must be 1 or more"),
        ("PORT", "70000", "--port 70000 (from LLAVA_PORT): must be 65535 or less"),
        ("PORT", "eighty", "--port eighty (from LLAVA_PORT): must be a whole number"),
        ("CPU_KVCACHE_SPACE", "1.5", "--cpu-kvcache-space 1.5 (from LLAVA_CPU_KVCACHE_SPACE): must be a whole number"),
        (
            "GPU_MEMORY_UTILIZATION",
            "90",
            "--gpu-memory-utilization 90 (from LLAVA_GPU_MEMORY_UTILIZATION): must be 1 or",
        ),
        ("QUEUE_TIMEOUT_SECONDS", "soon", "(from LLAVA_QUEUE_TIMEOUT_SECONDS): must be a number"),
        (
            "QUEUE_TIMEOUT_SECONDS",
            "0",
            "--queue-timeout-seconds 0 (from LLAVA_QUEUE_TIMEOUT_SECONDS): must be more than",
        ),
        ("ALLOW_ANONYMOUS", "perhaps", "--allow-anonymous perhaps (from LLAVA_ALLOW_ANONYMOUS): must be true or false"),
        ("DOCS", "maybe", "--docs maybe (from LLAVA_DOCS): must be one of 'key', 'open' or 'off'"),
        ("DTYPE", "int4", "--dtype int4 (from LLAVA_DTYPE): must be one of 'auto', 'float16', 'half', 'bfloat16'"),
        ("QUANTIZATION", "q4", "--quantization q4 (from LLAVA_QUANTIZATION): must be one of 'awq', "),
        ("ALLOWED_MEDIA_PORTS", "80,0", "--allowed-media-ports 0 (from LLAVA_ALLOWED_MEDIA_PORTS): must be 1 or more"),
        ("ALLOWED_MEDIA_CIDRS", "10.0.0.0/8,x", "x is not a network such as 10.1.0.0/16"),
        ("PORT", "tcp://10.0.0.7:80", "enableServiceLinks: false"),
    ],
)
def test_a_variable(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, told: str) -> None:
    monkeypatch.setenv(f"LLAVA_{variable}", text)
    said = complaint()
    assert told in said
    assert "Input should" not in said
    assert "pydantic" not in said


def test_vllms_other_names_of_types_are_the_same_types() -> None:
    assert [Settings(dtype=name).dtype for name in ("half", "float", "auto")] == ["float16", "float32", "auto"]


def test_a_flag_is_its_own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MAX_NUM_SEQS", "7")
    assert complaint("--max-num-seqs", "0") == "--max-num-seqs 0: must be 1 or more"


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "x")
    said = complaint("--max-num-seqs", "0")
    assert "--port x (from LLAVA_PORT)" in said
    assert "--max-num-seqs 0:" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--load-8bit", "--load-4bit"), "--load-8bit and --load-4bit exclude each other"),
        (("--load-8bit", "--quantization", "fp8"), "--load-8bit and --quantization fp8"),
        (("--load-4bit", "--quantization", "fp8"), "--load-4bit and --quantization fp8"),
        (("--engine-arg", "max_num_seqs=0"), "use that"),
        (("--engine-arg=--max-model-len=9",), "use that"),
    ],
)
def test_settings_that_contradict_each_other(flags: tuple[str, ...], told: str) -> None:
    assert told in complaint(*flags)


def test_a_misspelt_variable_is_found() -> None:
    environment = ["LLAVA_PROT", "LLAVA_API_KEYFILE", "LLAVA_PORT", "LLAVA_API_SERVICE_HOST", "LLAVA_ZZZ", "PATH"]
    assert unknown_variables(environment) == {"LLAVA_PROT": "LLAVA_PORT", "LLAVA_API_KEYFILE": "LLAVA_API_KEY_FILE"}


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-llava-very-secret-0123456789"
    assert secret not in shown("api_key", [f"anne={secret}", secret])
    for password in (secret, f"p@{secret}", f"p/{secret}"):
        assert shown("download_dir", f"redis://me:{password}@host/0") == "redis://...@host/0"
    arguments = [f"hf_token={secret}", f"api-key={secret}", f"ssl_password={secret}", "max_num_batched_tokens=64"]
    assert shown("engine_arg", arguments) == "hf_token=...,api-key=...,ssl_password=...,max_num_batched_tokens=64"
    assert shown("engine_arg", ["tokenizer_mode=auto", "block_size"]) == "tokenizer_mode=auto,block_size"
    monkeypatch.setenv("LLAVA_API_KEY", secret)
    assert source_of("api_key", {}) == "LLAVA_API_KEY"
    assert source_of("api_key", {"api_key": []}) == "flag"
    assert source_of("port", {}) == "default"


def test_the_parser_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["serve", "--docs", "x"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_bounds_are_the_settings_own() -> None:
    assert Settings(max_num_seqs=1).max_num_seqs == 1
