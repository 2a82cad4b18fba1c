"""Why the engine did not start, in one line.

The exception is raised in a process of vLLM's (EngineCore, or a worker of it), which prints it; ours only gets "Engine
core initialization failed. See root cause above". So each of vLLM's processes writes the exception down in a file that
the variable ``FILE`` names, by a filter on vLLM's own logger (``vllm_plugin`` puts it there), and ours reads it.

What is plainly about a setting or the machine is then told in that one line alone: the tracebacks of two or three
processes would bury it. Anything else keeps its traceback, as it may be a mistake in vLLM or here.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "_LLAVA_API_START_ERRORS"
FAILED = "failed to start"
"""How vLLM's processes end the sentence under which they log what stopped them."""
SECOND_HAND = ("root cause", "background process", "initialization failed")
"""Of exceptions that only say that another process had one."""
PLAIN = (ValueError, OSError, MemoryError)
"""What vLLM raises for settings that do not fit, and the system for what it does not have."""
KILLED = (
    "a process of the engine was killed while it loaded, as the system does when memory runs out: see that the weights "
    "and the KV cache fit (llava-api doctor), and the kernel's log (dmesg) for what it did"
)
BUS_ERROR = "a process of the engine was ended by SIGBUS, as it is when /dev/shm is full: give it more room"
VANISHED = "a process of the engine ended without a word while it loaded: out of memory? See llava-api doctor"


class Recorder(logging.Filter):
    """In one of vLLM's processes: writes the exception down that keeps it from starting."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.told = False
        """Whether this process has told why it ends: what it says after that is of no use."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or FAILED not in str(record.msg):
            return not self.told
        second_hand = is_second_hand(str(error))
        plain = isinstance(error, PLAIN) or "OutOfMemory" in type(error).__name__
        line = {"kind": type(error).__name__, "message": str(error), "second_hand": second_hand}
        try:
            with open(self.path, "a") as opened:
                opened.write(json.dumps(line) + "\n")
        except OSError:
            return True
        if logging.getLogger("vllm").isEnabledFor(logging.DEBUG) or not (plain or second_hand):
            return True
        if not self.told:
            self.told = True
            # Python would print the exception once more when the process ends, and it ends now.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return False


def is_second_hand(message: str) -> bool:
    return any(words in message for words in SECOND_HAND)


def record_start_errors() -> None:
    """In one of vLLM's processes: see to it that what stops its start reaches the process that wants to know."""
    path = os.environ.get(FILE)
    if path is None:
        return
    recorder = Recorder(path)
    for handler in logging.getLogger("vllm").handlers:
        # vLLM loads plugins more than once in a process.
        if not any(isinstance(one, Recorder) and one.path == path for one in handler.filters):
            handler.addFilter(recorder)


class StartErrors:
    """What vLLM's processes wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cause(self, said: str) -> str:
        """The first exception at first hand; without one, what the end of the process tells. ``said``: vLLM's words."""
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        first = next((line for line in found if not line["second_hand"]), None)
        if first is not None:
            return one_line(first["message"]) or str(first["kind"])
        if not is_second_hand(said):
            return one_line(said)
        ends = {int(code) for code in re.findall(r": (-\d+)", said)}
        return KILLED if -9 in ends else BUS_ERROR if -7 in ends else VANISHED


@contextmanager
def start_errors() -> Iterator[StartErrors]:
    """Inside, processes that are started write down what stops them."""
    with tempfile.TemporaryDirectory(prefix="llava-api-") as folder:
        path = Path(folder) / "errors"
        path.touch()
        os.environ[FILE] = str(path)
        try:
            yield StartErrors(path)
        finally:
            del os.environ[FILE]


def one_line(text: str) -> str:
    """The first paragraph of an exception's words, in one line."""
    paragraph = text.strip().split("\n\n")[0]
    return " ".join(paragraph.split())
