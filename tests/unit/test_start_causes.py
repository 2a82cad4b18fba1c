"""What vLLM's processes write down when they cannot start, and what is told of it."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from llava_api.engine.start_errors import (
    VARIABLE,
    EngineStart,
    counted,
    engine_start,
    loaded_bytes,
    record_start_errors,
)

GENERIC = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': %d}"


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """vLLM's own, with the one handler that it has."""
    made = logging.getLogger("vllm")
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(made, "handlers", [handler])
    # pytest lends its own handlers to loggers that do not propagate, and they would keep the filter for later tests.
    monkeypatch.setattr(made, "propagate", True)
    return made


@contextmanager
def failing_start(logger: logging.Logger, *errors: Exception) -> Iterator[EngineStart]:
    with engine_start() as start:
        record_start_errors(start)
        before = sys.stderr
        for error in errors:
            try:
                raise error
            except Exception:
                logger.exception("EngineCore failed to start.")
        # A process that has told its reason silences what it says after that.
        silent, sys.stderr = sys.stderr, before
        assert silent is not before
        silent.close()
        yield start


@pytest.mark.parametrize("plain", [ValueError, OSError, MemoryError])
def test_the_first_exception_at_first_hand_is_told(logger: logging.Logger, plain: type[Exception]) -> None:
    worker = plain("No room for it.\nTry less.\n\nA page of details.")
    core = RuntimeError("WorkerProc initialization failed due to an exception in a background process.")
    with failing_start(logger, worker, core) as start:
        assert start.cause(GENERIC % 1) == "No room for it. Try less."


def test_an_exception_without_words_is_told_by_its_name(logger: logging.Logger) -> None:
    with failing_start(logger, MemoryError()) as start:
        assert start.cause(GENERIC % 1) == "MemoryError"


def test_words_of_our_own_process_stay() -> None:
    with engine_start() as start:
        assert start.cause("max_model_len is too large") == "max_model_len is too large"
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(("code", "words"), [(-9, "memory runs out"), (-7, "/dev/shm"), (1, "without a message")])
def test_a_process_that_said_nothing(code: int, words: str) -> None:
    with engine_start() as start:
        assert words in start.cause(GENERIC % code)


def test_what_is_logged_at_other_times_is_left_alone(logger: logging.Logger) -> None:
    with engine_start() as start:
        record_start_errors(start)
        try:
            raise ValueError("of a request")
        except ValueError:
            logger.exception("could not answer")
        assert "without a message" in start.cause(GENERIC % 1)


def test_the_server_sees_how_much_has_been_loaded() -> None:
    megabytes = [(str(number), np.zeros(2**20, np.uint8)) for number in range(20)]
    assert loaded_bytes() == 0
    with engine_start():
        assert loaded_bytes() == 0
        # The tensor that is being loaded does not count yet.
        seen = [loaded_bytes() for _ in counted(megabytes)]
        assert seen == [0] * 8 + [8 * 2**20] * 8 + [16 * 2**20] * 4
    assert loaded_bytes() == 0
    # In a program that is no engine of ours.
    assert list(counted(megabytes)) == megabytes
