"""``llava-api chat --query``: one answer on standard output, and nothing else there."""

import argparse
import json
import sys
from contextlib import AbstractContextManager, closing
from typing import Any

from llava_api.cli.chat.client import Answer, AskFailed, Client
from llava_api.cli.chat.conversation import Conversation
from llava_api.cli.chat.own_server import Tell
from llava_api.cli.chat.pictures import open_picture
from llava_api.cli.chat.session import door_of, sampling_of
from llava_api.cli.terminal import harmless
from llava_api.errors import StartupError


def answer_once(chosen: argparse.Namespace) -> int:
    """The exit code. Raises StartupError, and without --json KeyboardInterrupt."""
    try:
        return ask(chosen)
    except (AskFailed, StartupError) as error:
        if not chosen.json:
            raise StartupError(str(error)) from error
        show({"error": {"message": str(error), "code": getattr(error, "code", None)}})
        return 1


def ask(chosen: argparse.Namespace) -> int:
    # Before a server is started for nothing.
    pictures = [open_picture(named) for named in chosen.images]
    conversation = Conversation(chosen.system or None).asked(chosen.query, [picture.url for picture in pictures])
    with door_of(chosen, on_standard_error) as door, closing(Client(door.base_url, door.key)) as client:
        model = door.model or client.models()[0]
        with client.ask(model, conversation.messages(), sampling_of(chosen)) as answer:
            for piece in answer:
                if not chosen.json:
                    sys.stdout.write(harmless(piece))
                    sys.stdout.flush()
        finish(answer, model, chosen.json)
    return 0


def on_standard_error(text: str) -> AbstractContextManager[Tell]:
    """Shows that the server starts."""
    from llava_api.cli.chat.screen import Screen

    return Screen(draw=False, aside=True).loading(text)


def finish(answer: Answer, model: str, as_json: bool) -> None:
    if as_json:
        usage = None if answer.usage is None else answer.usage.as_dict()
        show(
            {
                "answer": answer.text,
                "model": answer.model or model,
                "finish_reason": answer.finish_reason,
                "usage": usage,
            }
        )
        return
    if not answer.text.endswith("\n"):
        print(flush=True)
    if answer.finish_reason == "length":
        print("llava-api: the answer was cut at its longest length (--max-tokens)", file=sys.stderr)


def show(found: dict[str, Any]) -> None:
    """ASCII alone: what an answer could do to a terminal is spelled out."""
    print(json.dumps(found), flush=True)
