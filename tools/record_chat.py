"""Record ``docs/chat.svg``: a real session of ``llava-api chat --serve`` with the demo checkpoint.

::

    python -m tools.record_chat

Runs the chat at a terminal, types the lines of ``TYPED`` at its prompts, and draws what was shown. The drawing loads
nothing from elsewhere: it has no fonts and no addresses of any.
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
TERMINAL_MODES = re.compile(r"\x1b\[\?[0-9]+[hl]|\r")
FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)


def record(folder: Path) -> str:
    """The terminal's output with the shell's line. The chat runs in ``folder``, into which the images are copied."""
    for image in (HERE / "tests" / "clients" / "pictures").iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    # Without a spinner, which a drawing cannot show.
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
    """``shown`` as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(TERMINAL_MODES.sub("", shown).rstrip()), soft_wrap=True)
    svg = console.export_svg(
        title="llava-api chat", code_format=FONT_FACES.sub("", CONSOLE_SVG_FORMAT), unique_id="llava-api-chat"
    )
    # rich's template leaves spaces at the ends of lines.
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        RECORDING.write_text(drawing(record(Path(folder))), encoding="utf-8")
    print(RECORDING)


if __name__ == "__main__":
    main()
