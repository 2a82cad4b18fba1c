"""``llava-api chat --query``: print one answer on standard output, and nothing else there."""

import argparse
import asyncio
import json
import sys
from contextlib import AbstractContextManager, aclosing
from typing import Any

from llava_api.cli.api_client import Answer
from llava_api.cli.chat.files import open_image
from llava_api.cli.chat.interactive import client_of
from llava_api.cli.chat.own_server import ShowNews, open_endpoint
from llava_api.cli.chat.screen import Screen
from llava_api.cli.conversation import Conversation, Sampling
from llava_api.cli.endpoint import Endpoint
from llava_api.cli.terminal import without_controls
from llava_api.errors import StartupError


def answer_once(chosen: argparse.Namespace, sampling: Sampling) -> int:
    """Return the exit code. Raises StartupError unless errors are printed as JSON."""
    try:
        # Before a server is started: a wrong name would have it started in vain.
        images = [open_image(name) for name in chosen.images]
        conversation = Conversation(chosen.system or None).asked(chosen.query, [image.url for image in images])
        with open_endpoint(chosen, loading_on_standard_error) as endpoint:
            answer, model = asyncio.run(ask(endpoint, conversation, sampling, quiet=chosen.json))
    except StartupError as error:
        if not chosen.json:
            raise
        print_json({"error": {"message": str(error), "code": getattr(error, "code", None)}})
        return 1
    if chosen.json:
        model = answer.model or model
        print_json(
            {"answer": answer.text, "model": model, "finish_reason": answer.finish_reason, "usage": answer.usage}
        )
        return 0
    if not answer.text.endswith("\n"):
        print(flush=True)
    if answer.finish_reason == "length":
        print("llava-api: the answer was cut at its maximum length (--max-tokens)", file=sys.stderr)
    return 0


async def ask(endpoint: Endpoint, conversation: Conversation, sampling: Sampling, *, quiet: bool) -> tuple[Answer, str]:
    """The complete answer and the model that was asked. Unless ``quiet``, its text is written as it arrives."""
    async with aclosing(client_of(endpoint)) as client:
        model = endpoint.model or (await client.models())[0]
        async with client.ask(model, conversation.messages(), sampling) as answer:
            async for text in answer:
                if not quiet:
                    sys.stdout.write(without_controls(text))
                    sys.stdout.flush()
            return answer, model


def loading_on_standard_error(text: str) -> AbstractContextManager[ShowNews]:
    return Screen(draw=False, to_stderr=True).loading(text)


def print_json(content: dict[str, Any]) -> None:
    """In ASCII, where control characters in an answer are escaped and cannot command a terminal."""
    print(json.dumps(content), flush=True)
