"""What holds for every test."""

import logging
from collections.abc import Iterator

import pytest

ONE_ENGINE = ("demo", "engine")
"""Folders all of whose tests share what has been started."""


# First, because xdist reads the marks in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a running server or engine stays in one process where tests are dealt out by group (make test)."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder in ONE_ENGINE else item.path.name))


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
