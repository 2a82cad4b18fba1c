"""Record ``docs/chat.svg``: a real session of ``llava-api chat --serve`` with the demo checkpoint.

::

    python -m tools.record_chat

Runs the chat at a terminal, types what stands in ``TYPED`` once the prompt is there, and draws what was shown. Whoever
looks at the drawing loads nothing from elsewhere: it has no fonts in it and no addresses of any.
"""

import io
import os
import re
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tests.support.terminal import WAIT_SECONDS, terminal

HERE = Path(__file__).parents[1]
RECORDING = HERE / "docs" / "chat.svg"
COMMAND = ("chat", "--serve")
TYPED = (
    "/image circle-and-star.png",
    "Describe this image.",
    "What color is the star?",
    "How many shapes are there?",
    "/save shapes.json",
    "/quit",
)
COLUMNS = 80
OF_A_LIVE_TERMINAL = re.compile(r"\x1b\[\?[0-9]+[hl]|\r")
FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)


def record(folder: Path) -> str:
    """What the terminal was sent, the shell's line included. The chat runs in ``folder``, which has the pictures."""
    for picture in (HERE / "tests" / "clients" / "pictures").iterdir():
        (folder / picture.name).write_bytes(picture.read_bytes())
    # A drawing stands still: no spinner.
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "TTY_INTERACTIVE": "0"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        with terminal(["-m", "llava_api", *COMMAND], environment, COLUMNS) as opened:
            for line in TYPED:
                opened.wait_for("> ", 5 * WAIT_SECONDS)
                opened.enter(line)
            opened.end()
    finally:
        os.chdir(before)
    return f"\x1b[32m$\x1b[0m llava-api {' '.join(COMMAND)}\n{opened.raw}"


def drawing(shown: str) -> str:
    """As an SVG file."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(OF_A_LIVE_TERMINAL.sub("", shown).rstrip()), soft_wrap=True)
    svg = console.export_svg(
        title="llava-api chat", code_format=FONT_FACES.sub("", CONSOLE_SVG_FORMAT), unique_id="llava-api-chat"
    )
    # Spaces at the ends of lines come from rich's template.
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        RECORDING.write_text(drawing(record(Path(folder))), encoding="utf-8")
    print(RECORDING)


if __name__ == "__main__":
    main()
