"""What is printed: other people's text on somebody's terminal, and a terminal that is not there any more."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

from llava_api.errors import StartupError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: str) -> str:
    """The same with control characters spelled out, line breaks apart: none can move the cursor or turn the text."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Letters that turn the direction of what follows, beyond their own text."""


def harmless(text: str) -> str:
    """The same without what could command a terminal; line breaks and tabs stay. For long texts that people read."""
    return "".join(
        "\ufffd" if category(letter) == "Cs" else letter
        for letter in text
        if letter in "\n\t" or (category(letter) != "Cc" and ord(letter) not in TURNS)
    )


@contextmanager
def output_that_may_end() -> Iterator[None]:
    """Inside, standard output that cannot be written ends the program: in silence where nobody reads it any more.

    Raises SystemExit.
    """
    try:
        try:
            yield
        finally:
            # Now, while it can still be told: what waits in the buffer is else written when Python ends.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # As ``inspect | head`` leaves it.
        throw_output_away()
        sys.exit(1)
    except OSError as error:
        # A file that was opened by its name has it in its errors.
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        throw_output_away()
        sys.exit(f"llava-api: cannot write the output ({error.strerror}): make room where it goes")


def throw_output_away() -> None:
    """What is still in standard output's buffer goes nowhere, so that Python can end without a complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def complaint(error: StartupError) -> str:
    """The line for standard error."""
    return f"llava-api: {printable(str(error))}"
