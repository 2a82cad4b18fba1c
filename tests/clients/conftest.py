"""``llava-api serve`` as a stranger runs it: a process of its own, a bundled demo, a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Server:
    model: str
    base_url: str
    terminal: str
    """What it wrote while starting."""


def wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if "\ncurl " in text:
            return text
        if process.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running_server(model: str, log: Path, *flags: str) -> Iterator[Server]:
    """A server for ``model`` that writes to ``log``; at the end it is told to stop, and must do so with exit code 0."""
    command = [sys.executable, "-m", "llava_api", "serve", model, "--port", "0", *flags]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=os.environ.copy())
    try:
        terminal = wait_until_ready(process, log)
        found = re.search(r"Base URL: (\S+)", terminal)
        assert found is not None
        yield Server(model, found[1], terminal)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
