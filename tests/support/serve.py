"""``llava-api serve`` as a stranger runs it: a process of its own, at a free port."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.waiting import wait_until

START_SECONDS = 180
END_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Server:
    model: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def terminal(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    @property
    def base_url(self) -> str:
        """Ends in ``/v1``."""
        found = re.search(r"Base URL: (\S+)", self.terminal)
        assert found is not None, self.terminal[-3000:]
        return found[1]

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> None:
        """Wait until it has written ``text``. Raises AssertionError if it ends before."""
        wait_until(lambda: text in self.terminal or self.process.poll() is not None, seconds)
        assert text in self.terminal, f"the server ended:\n{self.terminal[-3000:]}"

    def children(self) -> list[psutil.Process]:
        """All processes that it has started, directly or not."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_process(self, name: str) -> psutil.Process | None:
        """The engine's process with ``name`` in its title (``EngineCore``, ``Worker``), once there is one."""
        for child in self.children():
            try:
                if name in " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def wait_for_engine_process(self, name: str) -> psutil.Process:
        wait_until(lambda: self.engine_process(name) or self.process.poll() is not None, START_SECONDS)
        found = self.engine_process(name)
        assert found is not None, f"there is no {name}:\n{self.terminal[-3000:]}"
        return found


@contextmanager
def started_server(model: str, log: Path, *flags: str) -> Iterator[Server]:
    """A server that has just been started, and writes to ``log``. None of its processes is left at the end."""
    command = [sys.executable, "-m", "llava_api", "serve", model, "--port", "0", *flags]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=os.environ.copy())
    server = Server(model, process, log)
    children: list[psutil.Process] = []
    try:
        yield server
        children = server.children() if process.poll() is None else []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert have_ended(children)


@contextmanager
def running_server(model: str, log: Path, *flags: str) -> Iterator[Server]:
    """A server that is ready. At the end it gets a SIGTERM, and must exit with code 0."""
    with started_server(model, log, *flags) as server:
        server.wait_for("\ncurl ")
        yield server
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(END_SECONDS) == 0


def have_ended(processes: list[psutil.Process], seconds: float = 10.0) -> bool:
    """Whether all end within that time; a process that waits for its parent to notice has ended."""

    def all_ended() -> bool:
        return not [process for process in processes if process.is_running() and not is_zombie(process)]

    try:
        wait_until(all_ended, seconds)
    except TimeoutError:
        return False
    return True


def is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
