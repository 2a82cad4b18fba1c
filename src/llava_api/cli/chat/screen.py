"""What a conversation shows. The only module that imports ``rich``; other people's text bypasses its markup."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.status import Status
from rich.style import Style
from rich.text import Text

from llava_api.cli.chat.files import ImageFile
from llava_api.cli.chat.own_server import ShowNews
from llava_api.cli.terminal import without_controls
from llava_api.images.previews import Colour, miniature

IMAGE_COLUMNS = 40
IMAGE_ROWS = 15
UPPER_HALF = "\u2580"


class Screen:
    """Answers go to standard output. The rest goes there too if it is a terminal, else to standard error.

    ``draw``: whether images may be drawn. ``to_stderr``: the rest goes to standard error in any case.
    """

    def __init__(self, *, draw: bool, to_stderr: bool = False) -> None:
        is_terminal = sys.stdout.isatty() and not to_stderr
        self.console = Console(
            file=sys.stdout if is_terminal else sys.stderr, highlight=False, markup=False, emoji=False
        )
        has_colours = self.console.color_system in ("256", "truecolor") and not self.console.no_color
        unicode = self.console.encoding.lower().replace("-", "") == "utf8"
        self.draws = draw and is_terminal and has_colours and unicode and not self.console.is_dumb_terminal
        self.colours = is_terminal and self.console.color_system is not None and not self.console.no_color
        self.at_line_start = True

    def note(self, text: str, style: str = "dim") -> None:
        self.console.print(Text(without_controls(text), style), soft_wrap=True)

    def problem(self, text: str) -> None:
        self.note(text, "bold red")

    def heading(self, text: str) -> None:
        self.note(text, "bold")

    def write(self, text: str) -> None:
        """Write a part of an answer."""
        text = without_controls(text)
        if text:
            # Before writing, which Ctrl-C may interrupt.
            self.at_line_start = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()

    def end_line(self) -> None:
        if not self.at_line_start:
            self.write("\n")

    def image(self, image: ImageFile) -> None:
        """Show its name and, if the terminal can, the image itself. Raises BadImage for a damaged file."""
        cells = None
        if image.data is not None:
            # Needed without drawing too: it shows whether the file is complete.
            cells = miniature(image.data, min(IMAGE_COLUMNS, self.console.width), 2 * IMAGE_ROWS)
        if cells is not None and self.draws:
            self.console.print(half_blocks(cells))
        self.note(f"image for the next question: {image.label}")

    @contextmanager
    def spinner(self, text: str) -> Iterator["Spinner"]:
        """Spins at a terminal until it is stopped or the block ends."""
        status = None
        if self.console.is_interactive and not self.console.is_dumb_terminal:
            status = self.console.status(Text(text, "dim"), spinner="line", spinner_style="dim")
            status.start()
        spinner = Spinner(status)
        try:
            yield spinner
        finally:
            spinner.stop()

    @contextmanager
    def loading(self, text: str) -> Iterator[ShowNews]:
        """A spinner for what takes long, with the latest news of it."""
        with self.spinner(text) as spinner:

            def show_news(news: str) -> None:
                line = " ".join(without_controls(f"{text}: {news}" if news else text).split())
                spinner.show(line[: self.console.width - 4])

            yield show_news


class Spinner:
    def __init__(self, status: Status | None) -> None:
        self.status = status

    def show(self, text: str) -> None:
        if self.status is not None:
            self.status.update(Text(text, "dim"))

    def stop(self) -> None:
        if self.status is not None:
            self.status.stop()


def half_blocks(rows: list[list[Colour]]) -> Text:
    """Draw two rows of colours a line: a cell's letter is its upper half, its background the lower half."""
    lines = []
    for top in range(0, len(rows), 2):
        line = Text(no_wrap=True)
        lower_row: list[Colour | None] = [*rows[top + 1]] if top + 1 < len(rows) else [None] * len(rows[top])
        for (upper, lower), run in groupby(zip(rows[top], lower_row, strict=True)):
            # A cell of one colour needs no letter, which fonts draw with seams.
            letter = " " if upper == lower else UPPER_HALF
            background = None if lower is None else hexadecimal(lower)
            line.append(letter * len(list(run)), Style(color=hexadecimal(upper), bgcolor=background))
        lines.append(line)
    return Text("\n").join(lines)


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
