"""Where a command's output goes may be gone or full: no traceback, and an exit code that tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {"page": ("explain", "-"), "JSON": ("explain", "-", "--json")}
LONG = '{"messages": [{"role": "user", "content": "' + "many words " * 300 + '"}]}'


def run(command: str, output: int | Path) -> "subprocess.CompletedProcess[str]":
    """As from a shell, where Python gathers output before it writes it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(output, "w") as opened:
        return subprocess.run(
            [sys.executable, "-m", "llava_api", *COMMANDS[command]],
            input=LONG,
            stdout=opened,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_went_away_is_no_news(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(command, writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_sentence(command: str) -> None:
    done = run(command, Path("/dev/full"))
    assert done.returncode == 1
    assert done.stderr == "llava-api: cannot write the output (No space left on device): make room where it goes\n"
