"""``llava-api``: parse the command line and run the subcommand."""

import argparse
import sys
from typing import Any, NoReturn

from llava_api import __version__
from llava_api.cli import convert, explain, inspect, keys, merge, route, serve
from llava_api.cli.bulk import batch, caption, evaluate
from llava_api.cli.chat import command as chat
from llava_api.cli.doctor import command as doctor
from llava_api.cli.finetune import command as finetune
from llava_api.cli.fleet import command as fleet
from llava_api.cli.terminal import error_line, output_that_may_end
from llava_api.cli.ui import command as ui
from llava_api.errors import StartupError

COMMANDS = (
    *(serve, fleet, route, chat, batch, caption, evaluate, finetune),
    *(ui, doctor, explain, inspect, convert, merge, keys),
)


class Parser(argparse.ArgumentParser):
    """Prints one line for an error; argparse would print fifty lines of usage before it."""

    def __init__(self, *, description: str | None = None, **options: Any) -> None:
        # Descriptions are docstrings.
        super().__init__(description=description and description.replace("``", ""), **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llava-api", description="An OpenAI-compatible API for LLaVA checkpoints.")
    parser.add_argument("--version", action="version", version=f"llava-api {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. A StartupError is printed in one line and gives exit code 1."""
    with output_that_may_end():
        chosen = build_parser().parse_args(arguments)
        try:
            chosen.run(chosen)
        except StartupError as error:
            sys.exit(error_line(error))
        except KeyboardInterrupt:
            sys.exit(130)
