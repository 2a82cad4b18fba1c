"""``llava-api chat --serve``: a server that starts with the chat and never outlives it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.terminal import CONTROL_C, terminal

CHAT = ["-m", "llava_api", "chat", "--serve"]
PICTURES = Path(__file__).parent / "pictures"
SECONDS = 300


def servers_of(chat_id: int) -> list[psutil.Process]:
    """Wait until a chat has started its server; return the server and its child processes."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = psutil.Process(chat_id).children(recursive=True)
        if any("serve" in process.cmdline() for process in found):
            return found
        time.sleep(0.05)
    raise AssertionError("no server was started")


def all_ended(processes: Sequence[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not alive


def test_a_question_with_its_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    # Settings of another server, which must not reach the chat's own.
    monkeypatch.setenv("LLAVA_API_KEY", "sk-llava-of-another-server")
    monkeypatch.setenv("LLAVA_UNIX_SOCKET", "/no/such/folder/socket")
    command = [sys.executable, *CHAT, "--query", "What number is written?", "--image", str(PICTURES / "number-27.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        try:
            servers = servers_of(chat.pid)
            out, err = chat.communicate(timeout=SECONDS)
        finally:
            chat.kill()
    assert (chat.returncode, out, err) == (0, "27.\n", "")
    assert all_ended(servers)


def test_a_chat_that_is_killed_takes_its_server_along() -> None:
    with subprocess.Popen([sys.executable, *CHAT, "--query", "What?"], stdout=subprocess.DEVNULL) as chat:
        try:
            servers = servers_of(chat.pid)
        finally:
            chat.kill()
    assert all_ended(servers)


def test_control_c_ends_a_server_that_loads() -> None:
    with terminal(CHAT, {**os.environ, "TERM": "xterm-256color"}) as opened:
        opened.wait_for("starting llava-tiny-1.5")
        servers = servers_of(opened.process.pid)
        opened.type(CONTROL_C)
        assert opened.end() == 130
    assert all_ended(servers)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, *CHAT, "--model-path", str(tmp_path / "none"), "--query", "What?"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llava-api: the server did not start; it said:\n")
    assert "give the path of a checkpoint folder or a hub id" in done.stderr
