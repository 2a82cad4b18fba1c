"""``llava-api chat``: ask a model about images, once with --query, or in a conversation.

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

from llava_api.cli.conversation import Sampling
from llava_api.cli.endpoint import BASE_URL, base_url_from, is_web_address
from llava_api.cli.flags import DEMO

REPLACED_FLAGS = {
    "--conv-mode": "the server finds a checkpoint's prompt by itself; llava-api serve --prompt-family chooses another",
    "--device": "the server decides where the model runs: see llava-api serve --help",
    "--debug": "llava-api explain shows what the model is shown",
}
"""Flags of LLaVA's own programs that have no meaning here -> what to use."""
SERVER_FLAGS = {"model_base": "--model-base", "load_8bit": "--load-8bit", "load_4bit": "--load-4bit"}
"""Passed on to the server that --serve starts."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("chat", help="ask a model about images", description=__doc__)
    add_question_flags(parser)
    add_answer_flags(parser)
    add_server_flags(parser)
    for flag in REPLACED_FLAGS:
        parser.add_argument(flag, action=Replaced, nargs="?", help=argparse.SUPPRESS)
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
        help="image for the first question: a file, a URL that the server fetches, or - for standard input; takes "
        "several and may be repeated",
    )
    parser.add_argument("--sep", metavar="TEXT", help="separator of several images in one text")
    parser.add_argument("--query", metavar="TEXT", help="ask this, print only the answer, and end")
    parser.add_argument("--json", action="store_true", help="with --query: print the answer as one JSON object")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; without it, the model's own")
    parser.add_argument("--no-preview", action="store_true", help="do not draw the images in the terminal")


def add_answer_flags(
    parser: argparse.ArgumentParser, temperature: float | None = None, max_tokens: int | None = None
) -> None:
    """``temperature`` and ``max_tokens``: the defaults."""
    default = "" if temperature is None else f" (default: {temperature:g})"
    parser.add_argument(
        "--temperature",
        type=number,
        default=temperature,
        metavar="NUMBER",
        help=f"0 always takes the most likely word{default}",
    )
    parser.add_argument(
        "--top-p", "--top_p", type=number, metavar="NUMBER", help="share of the probability to sample from"
    )
    parser.add_argument(
        "--max-tokens",
        "--max-new-tokens",
        "--max_new_tokens",
        type=int,
        default=max_tokens,
        metavar="NUMBER",
        help=f"maximum length of an answer; without it, {max_tokens or 'what the context leaves'}",
    )
    parser.add_argument("--seed", type=int, metavar="NUMBER", help="the same seed gives the same answer")


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", metavar="URL", help=f"the API; else $OPENAI_BASE_URL, else {BASE_URL}")
    parser.add_argument(
        "--model",
        "--model-path",
        metavar="NAME",
        help=f"which of the server's models (the first). With --serve, the checkpoint to load ({DEMO})",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the API key, as key or name=key; else $LLAVA_API_KEY, else $OPENAI_API_KEY",
    )
    parser.add_argument("--serve", action="store_true", help="start a server that ends with the chat")
    parser.add_argument("--model-base", metavar="MODEL", help="with --serve: as for llava-api serve")
    for bits in ("8", "4"):
        parser.add_argument(f"--load-{bits}bit", action="store_true", help=f"with --serve: load it in {bits} bits")


class Replaced(argparse.Action):
    """Ends the program with the advice in ``REPLACED_FLAGS``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        parser.error(f"{option}: {REPLACED_FLAGS[str(option)]}")


def number(text: str) -> float:
    """Raises ValueError, to which argparse adds the flag."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError
    return found


def run(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if chosen.sep:
        chosen.images = [part for text in chosen.images for part in text.split(chosen.sep) if part]
    check_usage(parser, chosen)
    open_closed_streams()
    # Input may be invalid UTF-8, and an answer may have letters that the terminal lacks: neither may end the chat.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sampling = Sampling(chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed)
    # Imported only now: openai and rich, which the other commands do not need, take time to load.
    if chosen.query is not None:
        from llava_api.cli.chat.once import answer_once

        sys.exit(answer_once(chosen, sampling))
    from llava_api.cli.chat.interactive import converse

    sys.exit(converse(chosen, sampling))


def open_closed_streams() -> None:
    """Replace standard streams that were closed when the program started, and are None, by empty ones."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the program ends


def check_usage(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Exits with code 2 if flags contradict each other."""
    if chosen.num_beams != 1:
        parser.error("--num-beams: beam search is not supported; leave it out")
    if chosen.query is not None and not chosen.query.strip():
        parser.error("--query is empty: write a question")
    if chosen.json and chosen.query is None:
        parser.error("--json needs --query")
    if "-" in chosen.images and chosen.query is None:
        parser.error("--image - needs --query: a conversation is read from standard input as well")
    if chosen.images.count("-") > 1:
        parser.error("--image -: standard input can be one image only")
    if chosen.serve and chosen.base_url is not None:
        parser.error("--serve starts a server of its own: leave --base-url out")
    for name, flag in SERVER_FLAGS.items():
        if getattr(chosen, name) and not chosen.serve:
            parser.error(f"{flag} is a flag of the server: give it to llava-api serve, or add --serve")
    if not chosen.serve and not is_web_address(base_url_from(chosen.base_url)):
        parser.error("--base-url must start with http:// or https://, as in " + BASE_URL)
