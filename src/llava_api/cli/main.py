"""``llava-api``: choose the subcommand."""

import argparse
import sys

from llava_api import __version__
from llava_api.cli import convert, explain, inspect, keys, serve
from llava_api.cli.terminal import complain, output_that_may_end
from llava_api.errors import StartupError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-api", description="An OpenAI-compatible API for LLaVA checkpoints.")
    parser.add_argument("--version", action="version", version=f"llava-api {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (serve, explain, inspect, convert, keys):
        command.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; a StartupError becomes one sentence and exit code 1."""
    with output_that_may_end():
        chosen = build_parser().parse_args(arguments)
        try:
            chosen.run(chosen)
        except StartupError as error:
            complain(error)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
