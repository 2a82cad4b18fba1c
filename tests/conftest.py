"""What holds for every test."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import cache

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.support.serve import Server, running_server

# A shell ignores Ctrl-C for what it runs in the background, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALONE = ("tests/faults/*", "tests/clients/test_chat_serve.py", "tests/clients/test_engine_start_failures.py")
"""Files whose tests share nothing, and take long."""
SHARED = {
    "the demo checkpoints' servers": ("tests/clients/demo/test_*.py", "tests/browser/test_answers.py"),
    "the engine of tests/engine/conftest.py": (
        "tests/engine/test_answers.py",
        "tests/engine/test_disconnects.py",
        "tests/engine/test_engine_metrics.py",
        "tests/engine/test_isolation.py",
        "tests/engine/test_plugin.py",
        "tests/engine/test_vllm_engine.py",
    ),
}
"""Files whose tests share what has been started."""


class ByWhatIsShared(LoadFileScheduling):
    """Deals out files: together those that share a running server or engine, and test by test those that take long."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        for shared, patterns in SHARED.items():
            if any(fnmatch(file, pattern) for pattern in patterns):
                return shared
        return nodeid if any(fnmatch(file, pattern) for pattern in ALONE) else file


# Marks (xdist_group) would be shorter, and xdist 3.8 does not see them in pytest 9.2.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWhatIsShared | None:
    return ByWhatIsShared(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """A running server for a bundled demo checkpoint, by its name. Each is started once, when it is first needed."""
    with ExitStack() as stack:

        @cache
        def start(model: str) -> Server:
            folder = tmp_path_factory.mktemp("serve")
            flags = ("--data-dir", str(folder / "data"), "--min-free-disk-bytes", "0")
            return stack.enter_context(running_server(model, folder / "terminal.txt", *flags))

        yield start


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that ran in this process has set logging up for a terminal that is gone, and for all later tests."""
    loggers = [logging.getLogger(), logging.getLogger("llava_api")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in logger.handlers[:]:
            if handler not in handlers:
                logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
