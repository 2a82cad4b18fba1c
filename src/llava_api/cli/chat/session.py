"""What the command line says about server, model and answers, made ready."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llava_api.cli.chat.access import NO_KEY, base_url_of, key_of
from llava_api.cli.chat.own_server import Watch, own_server
from llava_api.cli.chat.sampling import Sampling
from llava_api.cli.models import DEMO


@dataclass(frozen=True, slots=True)
class Door:
    """Where to ask."""

    base_url: str
    key: str
    model: str | None
    """None for the server's first."""


@contextmanager
def door_of(chosen: argparse.Namespace, watch: Watch) -> Iterator[Door]:
    """Open for the block; with --serve a server runs that long. Raises StartupError."""
    if not chosen.serve:
        yield Door(base_url_of(chosen.base_url), key_of(chosen.api_key_file), chosen.model or None)
        return
    with own_server(chosen.model or DEMO, server_flags(chosen), watch) as base_url:
        yield Door(base_url, NO_KEY, None)


def server_flags(chosen: argparse.Namespace) -> list[str]:
    """What --serve hands on to the server."""
    flags = [] if chosen.model_base is None else ["--model-base", chosen.model_base]
    return flags + [f"--load-{bits}bit" for bits in (8, 4) if getattr(chosen, f"load_{bits}bit")]


def sampling_of(chosen: argparse.Namespace) -> Sampling:
    return Sampling(chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed)
