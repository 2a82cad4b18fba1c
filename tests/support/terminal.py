"""A program at a terminal: what it shows, and what is typed to it."""

import codecs
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CONTROL_C = "\x03"
CONTROL_D = "\x04"
WAIT_SECONDS = 120
PATIENCE_SECONDS = 5
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""So that the terminal's Ctrl-C reaches the program."""


class Terminal:
    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.master = master
        self.process = process
        # A letter may come in two reads.
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.raw = ""
        """All that was shown, with escape sequences."""
        self.seen = 0
        """How much of what was shown was waited for, escape sequences apart."""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def enter(self, text: str) -> None:
        self.type(text + "\r")

    def wait_for(self, text: str, seconds: float = WAIT_SECONDS) -> str:
        """What was shown since the last wait, up to ``text``, without escape sequences."""
        deadline = time.monotonic() + seconds
        while True:
            shown = plain(self.raw)[self.seen :]
            if text in shown:
                end = shown.index(text) + len(text)
                self.seen += end
                return shown[:end]
            if time.monotonic() > deadline or not self.more():
                raise AssertionError(f"{text!r} was not shown, but: {shown!r}")

    def type_until(self, keys: str, text: str) -> None:
        """For Ctrl-C at a prompt: Python sees none in the moment between the prompt and its wait for keys."""
        for _ in range(WAIT_SECONDS // PATIENCE_SECONDS):
            self.type(keys)
            try:
                self.wait_for(text, PATIENCE_SECONDS)
            except AssertionError:
                continue
            return
        raise AssertionError(f"{text!r} was not shown, but: {plain(self.raw)[self.seen :]!r}")

    def more(self) -> bool:
        """Read what there is. False if the program has ended."""
        if not select.select([self.master], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self.master, 65536)
        except OSError:
            # Linux's way to say that the terminal is not open any more.
            return False
        self.raw += self.decoder.decode(data)
        return bool(data)

    def end(self) -> int:
        """Its exit code, once all was read."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.more():
            assert time.monotonic() < deadline, f"it goes on: {plain(self.raw)[self.seen :]!r}"
        return self.process.wait(WAIT_SECONDS)


def plain(text: str) -> str:
    return ESCAPES.sub("", text).replace("\r", "")


@contextmanager
def terminal(arguments: Sequence[str], environment: dict[str, str], columns: int = 100) -> Iterator[Terminal]:
    """``python arguments`` at a new terminal; killed at the end if it still runs."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, columns))
    command = [sys.executable, "-c", TAKE_TERMINAL, sys.executable, *arguments]
    try:
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
        )
        os.close(slave)
        with process:
            try:
                yield Terminal(master, process)
            finally:
                process.kill()
    finally:
        os.close(master)
