"""``--serve``: a server of the chat's own. It cannot outlive the chat."""

import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO

from llava_api.engine.processes import die_with
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import marked, variable_of

BASE_URL = re.compile(r"ready\. Base URL: (\S+)")
Tell = Callable[[str], None]
Watch = Callable[[str], AbstractContextManager[Tell]]
"""Shows, while a block lasts, that something takes long: given what it is, it gives what is to be told the news."""
START_OF_LINE = re.compile(r"^llava-api: \S+Z ")
"""Of a line of the server's log: its name and the time."""
LOOK_SECONDS = 0.1
STOP_SECONDS = 15
TAIL_LINES = 15


@contextmanager
def own_server(model: str, flags: Sequence[str], watch: Watch) -> Iterator[str]:
    """The base URL of a server for ``model``, which ends with the block, or with this process however that ends.

    ``flags``: more of ``llava-api serve``. ``watch`` shows that it loads. Raises StartupError with the end of the
    server's log.
    """
    with tempfile.TemporaryFile("w+b") as log:
        process = start(model, flags, log)
        try:
            with watch(f"starting {model}") as tell:
                base_url = wait_until_ready(process, log, tell)
            yield base_url
        finally:
            stop(process)


def start(model: str, flags: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "llava_api", "serve", model, "--host", "127.0.0.1", "--port", "0"]
    public = {variable_of(name) for name in marked(Mark.PUBLIC_SERVER)}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in public}
    return subprocess.Popen(
        [*command, "--log-level", "info", "--log-format", "human", *flags],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C is for the answer, not for the server.
        start_new_session=True,
        # Nothing else runs in this process yet that a fork could catch in the middle.
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


def wait_until_ready(process: "subprocess.Popen[bytes]", log: IO[bytes], tell: Tell) -> str:
    """Its base URL, in as long as it takes: a checkpoint may have to be downloaded. Raises StartupError.

    ``tell`` is given the server's last line, again and again.
    """
    while True:
        ended = process.poll() is not None
        text = written(log)
        found = BASE_URL.search(text)
        if found is not None:
            return found[1]
        if ended:
            raise StartupError("the server did not start; it said:\n" + "\n".join(text.splitlines()[-TAIL_LINES:]))
        lines = text.splitlines()
        tell(START_OF_LINE.sub("", lines[-1]) if lines else "")
        time.sleep(LOOK_SECONDS)


def written(log: IO[bytes]) -> str:
    """All of it. Read without moving the place where the server writes, which it shares with us."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """For certain, a second Ctrl-C meanwhile included."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Its engine ends with it (``die_with_parent``). For one that has ended this does nothing.
        process.kill()
        process.wait()
