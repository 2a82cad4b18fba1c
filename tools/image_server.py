"""The server in an image, started by some command: ready, asked about an image, told to stop."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEMO_PICTURE = Path(__file__).resolve().parent.parent / "src" / "llava_api" / "demo" / "red-circle.png"
START_SECONDS = 600
STOP_SECONDS = 60
LEFT_SECONDS = 10
"""Where there is no PID namespace, helpers end a moment after the server, when they see that it is gone."""
KEY = re.compile(r"^sk-llava-\S+$", re.MULTILINE)


class Failed(Exception):
    """The image is not what it should be; the message says how."""


def say(line: str) -> None:
    print(f"[image] {line}", flush=True)


def check(fine: bool, otherwise: str) -> None:
    """Raises Failed."""
    if not fine:
        raise Failed(otherwise)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def descendants(pid: int) -> Iterator[int]:
    """Of all its threads: buildah starts programs from whichever it likes."""
    try:
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:
        # It has ended in the meantime.
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def name_of(pid: int) -> str:
    """Nothing for one that has ended, though nobody may have asked for its exit code."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return "" if re.search(r"^State:\s+[ZX]", status, re.MULTILINE) else status.split()[1]


class RunningImage:
    def __init__(
        self, process: "subprocess.Popen[bytes]", port: int, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.process = process
        self.address = f"http://127.0.0.1:{port}"
        self.log = log
        self.environment = environment

    @property
    def tini(self) -> int:
        """The process that a container engine sends its signals to."""
        for pid in descendants(self.process.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tini":
                    return pid
            except OSError:
                continue
        raise Failed("there is no tini")

    @property
    def root(self) -> Path:
        """Its root file system, as it sees it."""
        return Path(f"/proc/{self.tini}/root")

    def terminal(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str, key: str | None = None, body: object = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def wait_until_ready(self) -> None:
        started = time.monotonic()
        while "\ncurl " not in self.terminal():
            check(self.process.poll() is None, f"the server ended: {self.terminal()[-3000:]}")
            check(time.monotonic() - started < START_SECONDS, f"the server did not start: {self.terminal()[-3000:]}")
            time.sleep(0.25)
        say(f"  ready after {time.monotonic() - started:.1f} s")

    def healthy(self, command: list[str]) -> int:
        done = subprocess.run(command, capture_output=True, text=True, env=dict(self.environment), timeout=60)
        say(f"  health: exit code {done.returncode}, {done.stdout.strip()}")
        return done.returncode

    def try_it(self, health_command: list[str]) -> None:
        """Raises Failed. It has to be ready."""
        key = KEY.search(self.terminal())
        if key is None:
            raise Failed("the server showed no key")
        url = "data:image/png;base64," + base64.b64encode(DEMO_PICTURE.read_bytes()).decode()
        parts = [{"type": "text", "text": "What is in this image?"}, {"type": "image_url", "image_url": {"url": url}}]
        question = {"model": "llava-tiny-1.5", "messages": [{"role": "user", "content": parts}]}
        check(self.get("/v1/chat/completions", None, question)[0] == 401, "it answered without a key")
        asked = time.monotonic()
        status, answer = self.get("/v1/chat/completions", key[0], question)
        check(status == 200, f"the chat request got {status}: {answer}")
        said = answer["choices"][0]["message"]["content"]
        check(said == "A red circle.", f"it saw {said!r} in a picture of a red circle")
        say(f"  the picture: {said} ({1000 * (time.monotonic() - asked):.0f} ms)")
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in (self.tini, *descendants(self.tini))}
        check(owners == {10001}, f"processes run as {owners}")
        check(self.healthy(health_command) == 0, "the health check fails on a server that is ready")

    def stop(self) -> None:
        """Raises Failed unless SIGTERM ends it with exit code 0 and leaves no process behind."""
        tini = self.tini
        family = [tini, *descendants(tini)]
        told = time.monotonic()
        os.kill(tini, signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"SIGTERM did not end it within {STOP_SECONDS} s") from None
        check(code == 0, f"after SIGTERM its exit code was {code}: {self.terminal()[-2000:]}")
        say(f"  SIGTERM: exit code 0 after {time.monotonic() - told:.1f} s")
        told = time.monotonic()
        while (left := [name for pid in family if (name := name_of(pid))]) and time.monotonic() - told < LEFT_SECONDS:
            time.sleep(0.1)
        check(not left, f"processes were left: {left}")


@contextmanager
def running_image(command: list[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[RunningImage]:
    """Told to stop at the end of the block, and killed where that fails."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=dict(environment))
    running = RunningImage(process, port, log, environment)
    try:
        yield running
        running.stop()
    finally:
        if process.poll() is None:
            for pid in reversed(list(descendants(process.pid))):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
