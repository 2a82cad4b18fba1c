"""What vLLM's processes report while the engine starts: why it did not, in one line, and how far it has loaded.

The exception is raised in one of vLLM's processes (EngineCore or a worker), which prints it; the server only gets
"Engine core initialization failed. See root cause above". So while an engine starts, the environment variable
``VARIABLE`` names the server's process and a file, and vLLM's processes append to that file what stopped them.

The variable also distinguishes a process of our own engine from any other process that loads vLLM (``vllm_plugin``): it
is only set during a start, and its file exists only for that long.

Errors about a setting or the machine are shown as that one line only, because the tracebacks of two or three processes
would bury it. Any other error keeps its traceback, as it may be a mistake in vLLM or here.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from llava_api.errors import StartupError

STEP_BYTES = 8 * 2**20
VARIABLE = "_LLAVA_API_ENGINE_START"
FAILED = "failed to start"
"""The end of the sentence that vLLM's processes log with the exception that stopped them."""
SECOND_HAND = ("root cause", "background process", "initialization failed")
"""Words of exceptions that only report another process's exception."""
EXPECTED = (ValueError, OSError, MemoryError, StartupError)
"""What vLLM raises for settings that do not fit, and the system for what it does not have."""
KILLED = (
    "a process of the engine was killed while it loaded, as the system does when memory runs out: check that the "
    "weights and the KV cache fit (llava-api doctor), and what the kernel's log (dmesg) says"
)
BUS_ERROR = "a process of the engine was ended by SIGBUS, which happens when /dev/shm is full: make it larger"
VANISHED = "a process of the engine ended without a message while it loaded: out of memory? See llava-api doctor"


class Tensor(Protocol):
    @property
    def nbytes(self) -> int: ...


Sized = TypeVar("Sized", bound=Tensor)


@dataclass(frozen=True, slots=True)
class EngineStart:
    """A start of our engine, as its processes know it."""

    server_id: int
    """Process id of the server."""
    path: Path
    """One JSON object for each exception, oldest first."""

    @property
    def loaded(self) -> Path:
        """Bytes of weights that a process has loaded; if there are several, each loads about as much."""
        return self.path.with_name("loaded")

    @classmethod
    def current(cls) -> Self | None:
        """The start that this process belongs to; None in a process that no server of ours has started."""
        server_id, _, path = os.environ.get(VARIABLE, "").partition(":")
        return cls(int(server_id), Path(path)) if server_id.isdecimal() and Path(path).is_file() else None

    def record(self, error: BaseException) -> bool:
        """Append an exception. Returns False if the file cannot be written."""
        line = {
            "kind": type(error).__name__,
            "message": str(error),
            "second_hand": not isinstance(error, StartupError) and is_second_hand(str(error)),
        }
        try:
            with self.path.open("a") as opened:
                opened.write(json.dumps(line) + "\n")
        except OSError:
            return False
        return True

    def cause(self, message: str) -> str:
        """The first exception that is not second hand, else what the exit codes mean. ``message``: vLLM's own."""
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        first = next((line for line in found if not line["second_hand"]), None)
        if first is not None:
            return one_line(first["message"]) or str(first["kind"])
        if not is_second_hand(message):
            return one_line(message)
        codes = {int(code) for code in re.findall(r": (-\d+)", message)}
        return KILLED if -9 in codes else BUS_ERROR if -7 in codes else VANISHED


def counted(weights: Iterable[tuple[str, Sized]]) -> Iterator[tuple[str, Sized]]:
    """The weights, of which the server learns how many have been loaded."""
    start, loaded, shown = EngineStart.current(), 0, 0
    for name, tensor in weights:
        yield name, tensor
        loaded += tensor.nbytes
        if start is not None and loaded - shown >= STEP_BYTES:
            shown = loaded
            with suppress(OSError):
                start.loaded.write_text(str(loaded))


def loaded_bytes() -> int:
    """Of the weights, by the engine that is being started; 0 if none is."""
    start = EngineStart.current()
    try:
        return int(start.loaded.read_text()) if start is not None else 0
    except (OSError, ValueError):
        # Not begun, or the file is being written.
        return 0


@contextmanager
def engine_start() -> Iterator[EngineStart]:
    """Processes started inside the block are our engine's, and record what stops them."""
    with tempfile.TemporaryDirectory(prefix="llava-api-") as folder:
        start = EngineStart(os.getpid(), Path(folder) / "errors")
        start.path.touch()
        os.environ[VARIABLE] = f"{start.server_id}:{start.path}"
        try:
            yield start
        finally:
            del os.environ[VARIABLE]


class Recorder(logging.Filter):
    """Records the exception with which a process of vLLM's reports that it cannot start."""

    def __init__(self, start: EngineStart) -> None:
        super().__init__()
        self.start = start
        self.silent = False
        """Set after an expected error was recorded: the process ends, and what it logs on the way is of no use."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or FAILED not in str(record.msg):
            return not self.silent
        if not self.start.record(error):
            return True
        expected = isinstance(error, EXPECTED) or "OutOfMemory" in type(error).__name__ or is_second_hand(str(error))
        if logging.getLogger("vllm").isEnabledFor(logging.DEBUG) or not expected:
            return True
        if not self.silent:
            self.silent = True
            # Python would print the exception again when the process ends, which it does now.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return False


def record_start_errors(start: EngineStart) -> None:
    """Have this process record the exception that stops its start."""
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(Recorder(start))


def is_second_hand(message: str) -> bool:
    return any(words in message for words in SECOND_HAND)


def one_line(text: str) -> str:
    """The first paragraph of an exception's message, in one line."""
    paragraph = text.strip().split("\n\n")[0]
    return " ".join(paragraph.split())
