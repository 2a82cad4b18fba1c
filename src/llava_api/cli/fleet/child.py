"""One model's server: a ``llava-api serve`` process on a private Unix socket, which cannot outlive the fleet."""

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava_api.cli.fleet.models_file import LISTENING, WITH_PASSWORDS, FleetModel, flags_of
from llava_api.errors import StartupError
from llava_api.settings import variable_of

BOUND = (
    "import sys; from importlib import import_module; from llava_api.engine.processes import die_with; "
    "die_with(int(sys.argv.pop(1))); import_module(sys.argv.pop(1)).main()"
)
"""Python code of a process that ends with its parent. Arguments: the parent's process id, a module, the module's."""
SERVER = "llava_api.cli.main"
END_SECONDS = 15
"""Longest time between the end of a server's drain and its own end."""
OUTPUT_SECONDS = 1
"""Processes of the engine may hold the server's output open for longer than the server."""
MOST_BYTES = 65_536
OWN_ADDRESS = re.compile(rb'[ "](try it, in another terminal|ready\. Base URL|API keys): ?|^curl ')
"""What a server says of its own address, at which callers do not ask."""


class Child:
    """A server that has been started. ``ended`` gives the reason of its end."""

    def __init__(self, model: FleetModel, address: Path, news: socket.socket, process: Process) -> None:
        self.model, self.address, self.news, self.process = model, address, news, process
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = self.last_line = ""
        """What the server last said about itself, and the last line of its log."""
        self.killing: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(news, self.read_news)
        self.ended = asyncio.create_task(self.watch())

    async def until_ready(self) -> None:
        """Raises StartupError with the reason if the server ends instead."""
        either: set[asyncio.Future[Any]] = {self.ready, self.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.ended.done():
            raise StartupError(self.ended.result())

    def terminate(self) -> None:
        """The server ends its requests, at most for its drain's time, and then itself. While it loads it has none."""
        if self.killing is not None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
        seconds = END_SECONDS + (self.model.settings.drain_timeout_seconds if self.ready.done() else 0)
        self.killing = asyncio.get_running_loop().call_later(seconds, self.kill)

    def kill(self) -> None:
        """Also what its engine may have left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def watch(self) -> str:
        copying = asyncio.create_task(self.copy_output())
        code = await self.process.wait()
        await asyncio.wait({copying}, timeout=OUTPUT_SECONDS)
        copying.cancel()
        self.read_news()
        asyncio.get_running_loop().remove_reader(self.news)
        self.news.close()
        self.address.with_suffix(".news").unlink(missing_ok=True)
        if self.killing is not None:
            self.killing.cancel()
        self.kill()
        if self.status:
            return self.status
        if code < 0:
            return f"its server was ended by {signal.Signals(-code).name}"
        return f"its server ended with exit code {code}, after the line: {self.last_line}"

    def read_news(self) -> None:
        with suppress(BlockingIOError):
            while True:
                for line in self.news.recv(MOST_BYTES).decode(errors="replace").splitlines():
                    name, _, value = line.partition("=")
                    if name == "READY" and not self.ready.done():
                        self.ready.set_result(None)
                    elif name == "STATUS":
                        self.status = value

    async def copy_output(self) -> None:
        """To standard error, with the model's name before each line, unless the lines are JSON."""
        prefix = "" if self.model.settings.log_format == "json" else f"[{self.model.name}] "
        assert self.process.stdout is not None
        rest = b""
        while data := await self.process.stdout.read(MOST_BYTES):
            # Progress bars go back to the beginning of the line.
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                if not line or OWN_ADDRESS.search(line):
                    continue
                self.last_line = line.decode(errors="replace")
                # With a full disk the line is lost, and the server must not wait until somebody reads the next ones.
                with suppress(OSError):
                    sys.stderr.write(f"{prefix}{self.last_line}\n")
            with suppress(OSError):
                sys.stderr.flush()


async def start(model: FleetModel, address: Path, keys: Sequence[str], counts: str) -> Child:
    """``address``: the Unix socket of the server. ``keys``: those that it accepts. ``counts``: where the fleet counts.

    Must be called in the main thread, with which the process ends. Raises StartupError.
    """
    news_path = address.with_suffix(".news")
    news_path.unlink(missing_ok=True)
    news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    news.bind(str(news_path))
    own = [
        f"--served-model-name={model.name}", f"--unix-socket={address}", "--unix-socket-mode=600",
        "--trusted-proxies=unix", "--metrics=open",
    ]  # fmt: skip
    command = [*bound(SERVER), "serve", model.model, *flags_of(model.given), *own]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=STDOUT, env=environment(model, news_path, keys, counts),
            # Ctrl-C reaches the fleet only, which ends its models after their requests.
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        news.close()
        raise StartupError(f"its server cannot be started: {error.strerror}") from error
    return Child(model, address, news, process)


def bound(module: str) -> list[str]:
    """The command of a process that runs the ``main`` of ``module``, and ends with this process."""
    return [sys.executable, "-P", "-c", BOUND, str(os.getpid()), module]


def environment(model: FleetModel, news_path: Path, keys: Sequence[str], counts: str) -> dict[str, str]:
    left_out = {variable_of(name) for name in LISTENING}
    found = {name: value for name, value in os.environ.items() if name.upper() not in left_out}
    found["NOTIFY_SOCKET"] = str(news_path)
    # Flags would show in the list of processes.
    found[variable_of("api_key")] = ",".join(keys)
    if model.settings.rate_limit_redis_url is None:
        found[variable_of("rate_limit_redis_url")] = counts
    found.update({variable_of(name): str(model.given[name]) for name in WITH_PASSWORDS if model.given.get(name)})
    if model.gpus:
        # The numbers that nvidia-smi shows.
        found.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=",".join(model.gpus))
    return found
