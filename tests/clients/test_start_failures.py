"""What cannot start says so in one sentence, with exit code 1 and no traceback."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


def serve(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llava_api", "serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("/no/such/folder", "--port", "0"), "there is no folder"),
        (("llava-tiny-1.5", "--port", "0", "--prompt-family", "x"), "--prompt-family must be one of"),
        (("llava-tiny-1.5", "--port", "0", "--engine-arg", "foo=1"), "no such engine argument"),
        (("llava-tiny-1.5", "--port", "many"), "--port"),
        (("llava-tiny-1.5", "--port", "0", "--load-4bit"), "a checkpoint that is quantized already"),
        (("llava-tiny-1.5", "--port", "0", "--lora", "birds"), "write it as name=folder"),
        (("llava-tiny-1.5", "--port", "0", "--lora", "birds=/no/such"), "adapter_config.json"),
        (("llava-tiny-1.5", "--port", "0", "--image-mode", "anyres"), "needs a LLaVA-1.6 checkpoint"),
        (("llava-tiny-1.5", "--port", "0", "--max-lora-rank", "0"), "--max-lora-rank"),
    ],
)
def test_one_sentence(flags: tuple[str, ...], words: str) -> None:
    done = serve(*flags)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("llava-api: ")
    assert "Traceback" not in done.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve("llava-tiny-1.5", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "another server running" in done.stderr


def test_a_metrics_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve("llava-tiny-1.5", "--port", "0", "--metrics-port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Choose another with --metrics-port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    done = serve(str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "LlamaForCausalLM" in done.stderr
