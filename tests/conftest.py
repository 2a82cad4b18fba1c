"""What holds for every test."""

import logging
from collections.abc import Iterator
from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

ONE_ENGINE = ("demo", "engine")
"""Folders all of whose tests share what has been started."""


class ByWhatIsShared(LoadFileScheduling):
    """Deals out files, and whole folders where their files share a running server or engine."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name in ONE_ENGINE else file)


# Marks (xdist_group) would be shorter, and xdist 3.8 does not see them in pytest 9.2.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWhatIsShared | None:
    return ByWhatIsShared(config, log) if config.getvalue("dist") == "loadfile" else None


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
