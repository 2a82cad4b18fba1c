"""What a conversation shows. The only place here that knows ``rich``; other people's text goes past its markup."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.status import Status
from rich.style import Style
from rich.text import Text

from llava_api.cli.chat.own_server import Tell
from llava_api.cli.chat.pictures import Picture
from llava_api.cli.terminal import harmless
from llava_api.images.miniature import Colour, miniature

PICTURE_COLUMNS = 40
PICTURE_ROWS = 15
UPPER_HALF = "\u2580"


class Screen:
    """Answers go to standard output; the rest too where that is a terminal, else to standard error.

    ``draw``: whether pictures may be drawn. ``aside``: the rest goes to standard error in any case.
    """

    def __init__(self, *, draw: bool, aside: bool = False) -> None:
        is_terminal = sys.stdout.isatty() and not aside
        self.console = Console(
            file=sys.stdout if is_terminal else sys.stderr, highlight=False, markup=False, emoji=False
        )
        fine = self.console.color_system in ("256", "truecolor") and not self.console.no_color
        unicode = self.console.encoding.lower().replace("-", "") == "utf8"
        self.draws = draw and is_terminal and fine and unicode and not self.console.is_dumb_terminal
        self.colours = is_terminal and self.console.color_system is not None and not self.console.no_color
        self.at_line_start = True

    def note(self, text: str, style: str = "dim") -> None:
        self.console.print(Text(harmless(text), style), soft_wrap=True)

    def problem(self, text: str) -> None:
        self.note(text, "bold red")

    def heading(self, text: str) -> None:
        self.note(text, "bold")

    def piece(self, text: str) -> None:
        """A part of an answer, as it comes."""
        text = harmless(text)
        if text:
            # First, because Ctrl-C may come in the midst of writing.
            self.at_line_start = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()

    def end_of_answer(self) -> None:
        if not self.at_line_start:
            self.piece("\n")

    def picture(self, picture: Picture) -> None:
        """Its name, and in a terminal that can, the picture itself. Raises BadImage for a damaged file."""
        cells = None
        if picture.data is not None:
            # Where nothing is drawn, it tells all the same whether the file is whole.
            cells = miniature(picture.data, min(PICTURE_COLUMNS, self.console.width), 2 * PICTURE_ROWS)
        if cells is not None and self.draws:
            self.console.print(half_blocks(cells))
        self.note(f"picture for the next question: {picture.label}")

    def waiting(self, text: str) -> "Waiting":
        """A spinner where somebody watches, from ``with`` until ``over`` is called or the block is left."""
        watched = self.console.is_interactive and not self.console.is_dumb_terminal
        line = Text(text, "dim")
        return Waiting(self.console.status(line, spinner="line", spinner_style="dim") if watched else None)

    @contextmanager
    def loading(self, text: str) -> Iterator[Tell]:
        """The same for what takes longer, with the last news of it. (``own_server.Watch``)"""
        with self.waiting(text) as spinner:

            def tell(news: str) -> None:
                whole = " ".join(harmless(f"{text}: {news}" if news else text).split())
                spinner.say(whole[: self.console.width - 4])

            yield tell


class Waiting:
    def __init__(self, status: Status | None) -> None:
        self.status = status

    def __enter__(self) -> "Waiting":
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.over()

    def say(self, text: str) -> None:
        if self.status is not None:
            self.status.update(Text(text, "dim"))

    def over(self) -> None:
        if self.status is not None:
            self.status.stop()


def half_blocks(rows: list[list[Colour]]) -> Text:
    """Two rows of colours a line: the upper half of a cell is its letter, the lower half its background."""
    lines = []
    for top in range(0, len(rows), 2):
        line = Text(no_wrap=True)
        lower_row: list[Colour | None] = [*rows[top + 1]] if top + 1 < len(rows) else [None] * len(rows[top])
        for (upper, lower), run in groupby(zip(rows[top], lower_row, strict=True)):
            # Of one colour, it needs no letter, which fonts draw with seams.
            letter = " " if upper == lower else UPPER_HALF
            background = None if lower is None else hexadecimal(lower)
            line.append(letter * len(list(run)), Style(color=hexadecimal(upper), bgcolor=background))
        lines.append(line)
    return Text("\n").join(lines)


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
