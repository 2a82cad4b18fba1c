"""Reads what a person types: one line, or several that belong together, edited by readline at a terminal."""

import glob
import os
import re
import sys
from collections.abc import Sequence

QUOTES = '"""'
PROMPT = "> "
CONTINUATION = ". "
TAKE_PATHS = ("/image", "/load", "/save")


class Prompt:
    """The arrow keys bring back earlier lines, which are kept only in memory."""

    def __init__(self, commands: Sequence[str], *, colours: bool) -> None:
        self.commands = commands
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.colours = colours
        if self.is_terminal:
            self.set_up_editing()

    def set_up_editing(self) -> None:
        try:
            import readline
        except ImportError:
            # Some Pythons have none: the terminal's own editing remains.
            return
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self.complete)
        readline.parse_and_bind("tab: complete")
        if os.environ.get("TERM") != "dumb":
            # A pasted text of several lines stays one question.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """What was typed, stripped. Raises EOFError at the end of the input, KeyboardInterrupt for Ctrl-C."""
        text = self.read_line(PROMPT)
        if text.lstrip().startswith(QUOTES):
            text = text.lstrip()[len(QUOTES) :]
            while not text.rstrip().endswith(QUOTES):
                text += "\n" + self.read_line(CONTINUATION)
            return text.rstrip()[: -len(QUOTES)].strip()
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self.read_line(CONTINUATION)
        return text.strip()

    def read_line(self, prompt: str) -> str:
        if not self.is_terminal:
            return input()
        # Between 1 and 2, readline counts no columns.
        return input(f"\1\033[1;36m\2{prompt}\1\033[0m\2" if self.colours else prompt)

    def complete(self, text: str, state: int) -> str | None:
        """readline's completer: the ``state``-th way to complete ``text``."""
        import readline

        before = readline.get_line_buffer()[: readline.get_begidx()].split()
        return dict(enumerate(self.candidates(text, before))).get(state)

    def candidates(self, text: str, before: Sequence[str]) -> list[str]:
        """``before``: the words of the line in front of ``text``."""
        if not before:
            return [f"{command} " for command in self.commands if text.startswith("/") and command.startswith(text)]
        if before[0] not in TAKE_PATHS:
            return []
        unquoted = re.sub(r"\\(.)", r"\1", text)
        found = sorted(glob.glob(glob.escape(os.path.expanduser(unquoted)) + "*"))
        home = os.path.expanduser("~") if unquoted.startswith("~/") else ""
        paths = [path + "/" if os.path.isdir(path) else path for path in found]
        return [re.sub(r"""([\\ '"])""", r"\\\1", "~" + path[len(home) :] if home else path) for path in paths]
