"""Where the chat asks: the API that the flags name, or with ``--serve`` a server of its own, which ends with it."""

import argparse
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

from llava_api.cli.endpoint import NO_KEY, Endpoint, base_url_from, find_key
from llava_api.cli.flags import DEMO
from llava_api.engine.processes import die_with
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import marked, variable_of

READY = re.compile(r"ready\. Base URL: (\S+)")
ShowNews = Callable[[str], None]
ShowLoading = Callable[[str], AbstractContextManager[ShowNews]]
"""Given what is loading, shows it until the block ends, and gives a function that shows the latest news of it."""
START_OF_LINE = re.compile(r"^llava-api: \S+Z ")
"""The name and the time in a line of the server's log."""
POLL_SECONDS = 0.1
STOP_SECONDS = 15
TAIL_LINES = 15


@contextmanager
def open_endpoint(chosen: argparse.Namespace, show_loading: ShowLoading) -> Iterator[Endpoint]:
    """Raises StartupError."""
    if not chosen.serve:
        yield Endpoint(base_url_from(chosen.base_url), find_key(chosen.api_key_file), chosen.model or None)
        return
    flags = [] if chosen.model_base is None else ["--model-base", chosen.model_base]
    flags += [f"--load-{bits}bit" for bits in (8, 4) if getattr(chosen, f"load_{bits}bit")]
    with own_server(chosen.model or DEMO, flags, show_loading) as base_url:
        yield Endpoint(base_url, NO_KEY, None)


@contextmanager
def own_server(model: str, flags: Sequence[str], show_loading: ShowLoading) -> Iterator[str]:
    """The base URL of a server for ``model``, which ends with the block, or with this process however that ends.

    ``flags``: more of ``llava-api serve``'s. Raises StartupError with the end of the server's log.
    """
    with tempfile.TemporaryFile("w+b") as log:
        process = start(model, flags, log)
        try:
            with show_loading(f"starting {model}") as show_news:
                base_url = wait_until_ready(process, log, show_news)
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
        # Ctrl-C stops an answer, not the server.
        start_new_session=True,
        # This process has no other threads yet, which a fork could copy in the middle of something.
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


def wait_until_ready(process: "subprocess.Popen[bytes]", log: IO[bytes], show_news: ShowNews) -> str:
    """Its base URL, however long it takes: a checkpoint may have to be downloaded. Raises StartupError."""
    while True:
        ended = process.poll() is not None
        text = read_log(log)
        found = READY.search(text)
        if found is not None:
            return found[1]
        if ended:
            raise StartupError("the server did not start; it said:\n" + "\n".join(text.splitlines()[-TAIL_LINES:]))
        lines = text.splitlines()
        show_news(START_OF_LINE.sub("", lines[-1]) if lines else "")
        time.sleep(POLL_SECONDS)


def read_log(log: IO[bytes]) -> str:
    """All of it. The server shares the file's position, which this must not move."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process even if Ctrl-C is pressed again meanwhile."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Its engine ends with it (``die_with_parent``). A process that has ended is not affected.
        process.kill()
        process.wait()
