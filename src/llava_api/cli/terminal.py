"""Output: other people's text on a terminal, output that cannot be written, the log on standard error."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from unicodedata import category

from llava_api.errors import StartupError
from llava_api.telemetry.log_lines import HumanLines, JsonLines

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DIRECTION_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Characters that change the direction of the text that follows, beyond their own text."""


def printable(text: str) -> str:
    """Spell control characters out, so that none moves the cursor or turns the text; line breaks stay."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def without_controls(text: str) -> str:
    """Leave out what could command a terminal, for long texts that people read; line breaks and tabs stay."""
    return "".join(
        "\ufffd" if category(letter) == "Cs" else letter
        for letter in text
        if letter in "\n\t" or (category(letter) != "Cc" and ord(letter) not in DIRECTION_CONTROLS)
    )


@contextmanager
def output_that_may_end() -> Iterator[None]:
    """End the program if standard output cannot be written, without a message if its reader has gone.

    Raises SystemExit.
    """
    try:
        try:
            yield
        finally:
            # Here an error can still be reported: Python would write the rest of the buffer only when it ends.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # For example after ``inspect | head``.
        discard_output()
        sys.exit(1)
    except OSError as error:
        # An error with a file name is about another file than standard output.
        if error.errno not in DISK_FULL or error.filename is not None:
            raise
        discard_output()
        sys.exit(f"llava-api: cannot write the output ({error.strerror}): make room where it goes")


def discard_output() -> None:
    """Throw the rest of standard output's buffer away, so that Python can end without an error message."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def error_line(error: StartupError) -> str:
    return f"llava-api: {printable(str(error))}"


def set_up_logging(level: str, log_format: Literal["human", "json"] = "human") -> None:
    """Log our own lines from ``level`` on, and other packages' warnings and errors."""
    # Pillow warns of odd images; a caller's image does not concern the operator.
    warnings.filterwarnings("ignore", module="PIL")
    json_lines = log_format == "json"
    root = logging.StreamHandler(sys.stderr)
    root.setFormatter(JsonLines() if json_lines else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[root])
    if json_lines:
        logging.captureWarnings(True)
    if level != "debug":
        logging.getLogger("vllm").setLevel(logging.ERROR)
    ours = logging.getLogger("llava_api")
    ours.setLevel(level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_lines else HumanLines())
    ours.addHandler(handler)
    ours.propagate = False
