"""``llava-api eval``: ask a model the questions of a file in LLaVA's format, and write LLaVA's answers file."""

import argparse

from llava_api.cli.bulk import score


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("eval", help="answer a question file, or score its answers", description=__doc__)
    # Commands beside the flags, as in "llava-api eval score": each adds its parser here and sets its own ``run``.
    score.add_parser(parser.add_subparsers(metavar="COMMAND"))
