"""Run the server and the chat page together: ``make demo``. Ctrl-C ends both, and when one ends, so does the other.

Needs only the standard library; each program runs in the environment that tools/setup_venv.py made for it. The exit
code is 0 after Ctrl-C, otherwise that of the program that ended by itself, but at least 1.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
SERVER_PYTHON = ROOT / ".venv" / "bin" / "python"
UI_PYTHON = ROOT / ".venv-ui" / "bin" / "python"
SERVER_PORT, PAGE_PORT = 8000, 7860
SERVER_READY = re.compile(r"Base URL: (\S+)")
PAGE_READY = re.compile(r"The page: (\S+)")
STOP_SECONDS = 30


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class Child:
    """A program whose output is passed on until and after one line says that it is ready."""

    def __init__(self, command: list[str], ready: re.Pattern[str], show: Callable[[str], None]) -> None:
        # In a process group of its own, so that Ctrl-C reaches it once, from here.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0
        )
        self.address: str | None = None
        self.ready = ready
        self.show = show
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=self.read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def read(self, lines: IO[str]) -> None:
        for line in lines:
            match = self.ready.search(line)
            if match is not None and self.address is None:
                self.address = match[1]
            self.show(line)

    def wait_until_ready(self) -> str | None:
        """The address that the line names; None if the program ended before."""
        while self.address is None:
            if self.process.poll() is not None:
                self.reader.join()
                return self.address
            time.sleep(0.1)
        return self.address

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


def free_port(wanted: int) -> int:
    """``wanted``, or 0 (any port) if it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def show(line: str) -> None:
    print(line, end="", flush=True)


def run(server: list[str], page: list[str], children: list[Child]) -> int:
    """Return the exit code. ``children`` receives the programs as they are started."""
    serving = Child(server, SERVER_READY, show)
    children.append(serving)
    base_url = serving.wait_until_ready()
    if base_url is None:
        return max(serving.process.returncode, 1)
    showing = Child([*page, "--base-url", base_url], PAGE_READY, show)
    children.append(showing)
    link = showing.wait_until_ready()
    if link is not None:
        print(f"\n  Open {link} in a browser. Ctrl-C ends page and server.\n", flush=True)
    while True:
        for child, name in zip(children, ("server", "page"), strict=True):
            code = child.process.poll()
            if code is not None:
                print(f"\nThe {name} has ended (exit code {code}): the other ends too.", flush=True)
                return max(code, 1)
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="", help="as for llava-api serve (default: the bundled demo)")
    chosen = parser.parse_args()
    server = [str(SERVER_PYTHON), "-m", "llava_api", "serve", *([chosen.model] if chosen.model else [])]
    server += ["--port", os.environ.get("PORT") or str(free_port(SERVER_PORT))]
    page = [str(UI_PYTHON), "-m", "llava_api", "ui", "--port", str(free_port(PAGE_PORT))]

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    children: list[Child] = []
    try:
        return run(server, page, children)
    except Interrupted:
        return 0
    finally:
        # A second Ctrl-C must not leave a program running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in reversed(children):
            child.end()


if __name__ == "__main__":
    sys.exit(main())
