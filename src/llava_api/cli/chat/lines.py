"""What a person types: one line, or several that belong together, with readline's editing where there is a terminal."""

import glob
import os
import re
import sys
from collections.abc import Sequence

QUOTES = '"""'
PROMPT = "> "
MORE = ". "
WITH_PATHS = ("/image", "/load", "/save")


class Lines:
    """Lines typed before can be called back with the arrow keys; they are kept nowhere else."""

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
            # A Python without it: the terminal's own editing is left.
            return
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self.complete)
        readline.parse_and_bind("tab: complete")
        if os.environ.get("TERM") != "dumb":
            # A text of several lines that is pasted stays one question.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """What was typed, stripped. Raises EOFError at the end of the input, KeyboardInterrupt for Ctrl-C."""
        text = self.line(PROMPT)
        if text.lstrip().startswith(QUOTES):
            return self.until_quotes(text.lstrip()[len(QUOTES) :])
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self.line(MORE)
        return text.strip()

    def until_quotes(self, text: str) -> str:
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + self.line(MORE)
        return text.rstrip()[: -len(QUOTES)].strip()

    def line(self, prompt: str) -> str:
        if not self.is_terminal:
            return input()
        # 1 and 2 tell readline what takes no room.
        return input(f"\1\033[1;36m\2{prompt}\1\033[0m\2" if self.colours else prompt)

    def complete(self, text: str, state: int) -> str | None:
        """readline's completer: the ``state``-th way to go on from ``text``."""
        import readline

        before = readline.get_line_buffer()[: readline.get_begidx()].split()
        return dict(enumerate(self.candidates(text, before))).get(state)

    def candidates(self, text: str, before: Sequence[str]) -> list[str]:
        """``before``: the words of the line in front of ``text``."""
        if not before:
            return [f"{command} " for command in self.commands if text.startswith("/") and command.startswith(text)]
        if before[0] not in WITH_PATHS:
            return []
        plain = re.sub(r"\\(.)", r"\1", text)
        found = sorted(glob.glob(glob.escape(os.path.expanduser(plain)) + "*"))
        home = os.path.expanduser("~") if plain.startswith("~/") else ""
        ended = [path + "/" if os.path.isdir(path) else path for path in found]
        return [re.sub(r"""([\\ '"])""", r"\\\1", "~" + path[len(home) :] if home else path) for path in ended]
