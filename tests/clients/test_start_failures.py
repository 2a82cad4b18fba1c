"""What cannot start says so in one sentence, with exit code 1 and no traceback.

Most of it is tried in this process, where nothing has to be imported again; what ends after the engine's imports, and
one of each kind before them, in a process of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_api.cli.flags import demo_folder
from llava_api.cli.main import main


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets a signal's handler and a variable, and cannot undo it: its process ends with it."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``serve`` in this process; return the sentence with which it ends."""

    def run(*flags: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["serve", *flags])
        # Python writes a text to standard error and exits with code 1.
        sentence = ended.value.code
        assert isinstance(sentence, str)
        assert sentence.startswith("llava-api: ")
        assert "\n" not in sentence
        assert "Traceback" not in capsys.readouterr().err
        return sentence

    return run


def serve(*flags: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llava_api", "serve", *flags]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("/no/such/folder", "--port", "0"), "there is no folder"),
        (("llava-tiny-1.5", "--port", "0", "--prompt-family", "x"), "--prompt-family must be one of"),
        (("llava-tiny-1.5", "--port", "many"), "--port"),
        (("llava-tiny-1.5", "--port", "0", "--lora", "birds"), "write it as name=folder"),
        (("llava-tiny-1.5", "--port", "0", "--lora", "birds=/no/such"), "there is no folder or file /no/such"),
        (("llava-tiny-1.5", "--port", "0", "--image-mode", "anyres"), "needs a LLaVA-1.6 checkpoint"),
        (("llava-tiny-1.5", "--port", "0", "--max-lora-rank", "0"), "--max-lora-rank"),
        (("llava-tiny-1.5", "--port", "0", "--max-num-seqs", "0"), "--max-num-seqs 0: must be 1 or more"),
        (("llava-tiny-1.5", "--port", "0", "--load-8bit", "--quantization", "fp8"), "leave one out"),
        # The checkpoint is not looked for before the folder.
        (("/no/such/folder", "--port", "0", "--data-dir", "/proc/data"), "--data-dir /proc/data cannot be used"),
        (("llava-tiny-1.5", "--port", "0", "--cpu-kvcache-space", "90000"), "out of memory: the weights (9.4 MB"),
    ],
)
def test_one_sentence(refusal: Callable[..., str], flags: tuple[str, ...], words: str) -> None:
    assert words in refusal(*flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("/no/such/folder", "--port", "0"), "there is no folder"),
        (("llava-tiny-1.5", "--port", "0", "--engine-arg", "foo=1"), "no such engine argument"),
    ],
)
def test_one_sentence_of_a_process(flags: tuple[str, ...], words: str) -> None:
    done = serve(*flags)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("llava-api: ")
    assert "Traceback" not in done.stderr


def test_a_port_in_use(refusal: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another server running" in refusal("llava-tiny-1.5", "--port", str(taken.getsockname()[1]))


def test_a_metrics_port_in_use(refusal: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sentence = refusal("llava-tiny-1.5", "--port", "0", "--metrics-port", str(taken.getsockname()[1]))
    assert "Choose another with --metrics-port" in sentence


@pytest.mark.parametrize("model", ["/no/such/folder", "llava-tiny-1.5"])
def test_a_unix_socket_is_taken_along_by_a_server_that_never_was_ready(tmp_path: Path, model: str) -> None:
    """It cannot start, or is told to stop while it loads."""
    path = tmp_path / "llava.sock"
    command = [sys.executable, "-m", "llava_api", "serve", model, "--unix-socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "loading the engine" in line:
                assert path.is_socket()
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == (1 if model.startswith("/") else 0)
    assert not path.exists()


def test_a_checkpoint_of_another_kind(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "LlamaForCausalLM" in refusal(str(tmp_path), "--port", "0")


def test_a_wrong_variable_is_named_with_its_value() -> None:
    done = serve("llava-tiny-1.5", "--port", "0", LLAVA_MAX_NUM_SEQS="0")
    assert done.returncode == 1
    assert done.stderr == "llava-api: --max-num-seqs 0 (from LLAVA_MAX_NUM_SEQS): must be 1 or more\n"


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def pointer_of_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def a_shard_is_missing(folder: Path) -> None:
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)


def still_loading(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "model.safetensors is cut short or damaged (it has 1,000,000 bytes, and its header describes"),
        (pointer, "model.safetensors of the checkpoint is a git-lfs pointer"),
        (pointer_of_the_tokenizer, "tokenizer.json of the checkpoint is a git-lfs pointer"),
        (a_shard_is_missing, "model-00002-of-00002.safetensors is missing"),
        (still_loading, "a download is not finished: model.safetensors.incomplete"),
    ],
)
def test_a_checkpoint_that_is_half_there(
    tmp_path: Path, refusal: Callable[..., str], damage: Callable[[Path], None], words: str
) -> None:
    folder = Path(shutil.copytree(demo_folder() / "llava-tiny-1.5", tmp_path / "model"))
    damage(folder)
    assert words in refusal(str(folder), "--port", "0")
