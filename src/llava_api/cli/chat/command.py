"""``llava-api chat``: ask a model about pictures, once with --query, else in a conversation.

It talks to any OpenAI-compatible API, by default to llava-api serve on this machine. LLaVA's own --image-file,
--model-path, --max-new-tokens and --top_p are understood.
"""

import argparse
import functools
import io
import math
import os
import sys
from typing import Any, NoReturn

from llava_api.cli.chat.access import BASE_URL, base_url_of
from llava_api.cli.models import DEMO

OF_LLAVA = {
    "--conv-mode": "the server finds a checkpoint's prompt by itself; llava-api serve --prompt-family chooses another",
    "--device": "where the model runs is the server's: see llava-api serve --help",
    "--debug": "what the model is shown is told by llava-api explain",
}
"""Flags of LLaVA's own programs that mean nothing here -> what does."""
OF_THE_SERVER = {"model_base": "--model-base", "load_8bit": "--load-8bit", "load_4bit": "--load-4bit"}
"""Flags that a server takes: with --serve they go to it."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("chat", help="ask a model about pictures", description=__doc__)
    add_question_flags(parser)
    add_answer_flags(parser)
    add_server_flags(parser)
    for flag in OF_LLAVA:
        parser.add_argument(flag, action=Elsewhere, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--num-beams", "--num_beams", type=int, default=1, help=argparse.SUPPRESS)
    parser.set_defaults(run=functools.partial(run, parser))


def add_question_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        "--image-file",
        dest="images",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE|URL",
        help="a picture for the first question: a file, a URL that the server fetches, or - for standard input; "
        "several may follow, and the flag may be repeated",
    )
    parser.add_argument("--sep", metavar="TEXT", help="what stands between several pictures in one text")
    parser.add_argument("--query", metavar="TEXT", help="ask this, print the answer and nothing else, and end")
    parser.add_argument("--json", action="store_true", help="with --query: print the answer as one JSON object")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; without it, the model's own")
    parser.add_argument("--no-preview", action="store_true", help="do not draw the pictures in the terminal")


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=number, metavar="NUMBER", help="0 always takes the likeliest word")
    parser.add_argument(
        "--top-p", "--top_p", type=number, metavar="NUMBER", help="share of the likelihood to draw from"
    )
    parser.add_argument(
        "--max-tokens",
        "--max-new-tokens",
        "--max_new_tokens",
        type=int,
        metavar="NUMBER",
        help="longest answer; without it, what the context leaves",
    )
    parser.add_argument("--seed", type=int, metavar="NUMBER", help="the same seed gives the same answer")


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", metavar="URL", help=f"of the API; else $OPENAI_BASE_URL, else {BASE_URL}")
    parser.add_argument(
        "--model",
        "--model-path",
        metavar="NAME",
        help=f"which of the server's models; its first, if not given. With --serve, the checkpoint to load ({DEMO})",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the API key, alone or as name=key; else $LLAVA_API_KEY, else $OPENAI_API_KEY",
    )
    parser.add_argument("--serve", action="store_true", help="start a server of its own for as long as this lasts")
    parser.add_argument("--model-base", metavar="MODEL", help="with --serve: what llava-api serve --model-base takes")
    for bits in ("8", "4"):
        parser.add_argument(f"--load-{bits}bit", action="store_true", help=f"with --serve: load it in {bits} bits")


class Elsewhere(argparse.Action):
    """A flag of LLaVA's programs that has no meaning here: says what to use."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        parser.error(f"{option}: {OF_LLAVA[str(option)]}")


def number(text: str) -> float:
    """Raises ValueError: argparse says which flag it was."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError
    return found


def run(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if chosen.sep:
        chosen.images = [part for text in chosen.images for part in text.split(chosen.sep) if part]
    check_usage(parser, chosen)
    open_what_is_closed()
    # What is typed may be no text, and what is said may be no letter of the terminal's: neither may end the chat.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Only now: these bring openai and rich, which the other commands do without.
    if chosen.query is not None:
        from llava_api.cli.chat.once import answer_once

        sys.exit(answer_once(chosen))
    from llava_api.cli.chat.loop import converse

    sys.exit(converse(chosen))


def open_what_is_closed() -> None:
    """Standard streams that whoever started this has closed are Python's None: they become empty ones."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the program


def check_usage(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Exits with code 2 where flags do not fit together."""
    if chosen.num_beams != 1:
        parser.error("--num-beams: beam search is not served; leave it out")
    if chosen.query is not None and not chosen.query.strip():
        parser.error("--query is empty: say what to ask")
    if chosen.json and chosen.query is None:
        parser.error("--json needs --query")
    if "-" in chosen.images and chosen.query is None:
        parser.error("--image - needs --query: a conversation is read from standard input as well")
    if chosen.images.count("-") > 1:
        parser.error("--image -: standard input can be one picture only")
    if chosen.serve and chosen.base_url is not None:
        parser.error("--serve starts a server of its own: leave --base-url out")
    for name, flag in OF_THE_SERVER.items():
        if getattr(chosen, name) and not chosen.serve:
            parser.error(f"{flag} is the server's: give it to llava-api serve, or add --serve")
    if not chosen.serve and not base_url_of(chosen.base_url).lower().startswith(("http://", "https://")):
        parser.error("--base-url must start with http:// or https://, as in " + BASE_URL)
