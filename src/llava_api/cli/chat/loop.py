"""``llava-api chat`` without --query: the conversation at the prompt."""

import argparse
from contextlib import closing

from llava_api.cli.chat.access import shown
from llava_api.cli.chat.client import AskFailed, Client
from llava_api.cli.chat.commands import COMMANDS, Commands, Quit
from llava_api.cli.chat.conversation import Conversation
from llava_api.cli.chat.lines import Lines
from llava_api.cli.chat.pictures import open_picture
from llava_api.cli.chat.screen import Screen
from llava_api.cli.chat.session import door_of, sampling_of
from llava_api.cli.chat.talk import Talk
from llava_api.errors import StartupError

HINT = "/help lists the commands; /quit or Ctrl-D ends."
NO_LIST = (404, 405, 501)
"""Statuses of a server that has no list of its models."""


def converse(chosen: argparse.Namespace) -> int:
    """The exit code. Raises StartupError where it cannot begin."""
    screen = Screen(draw=not chosen.no_preview)
    pictures = [open_picture(named) for named in chosen.images]
    start = Conversation(chosen.system or None)
    lines = Lines(tuple(COMMANDS), colours=screen.colours)
    with door_of(chosen, screen.loading) as door, closing(Client(door.base_url, door.key)) as client:
        models = models_of(client, door.model)
        model = door.model or models[0]
        talk = Talk(client, models, model, sampling_of(chosen), start, screen, lines.is_terminal)
        if lines.is_terminal:
            screen.heading(f"llava-api chat: {model} at {shown(door.base_url)}")
            screen.note(HINT)
        for picture in pictures:
            talk.attach(picture)
        return 0 if talk_on(talk, lines, screen) else 1


def models_of(client: Client, wanted: str | None) -> list[str]:
    """Raises StartupError where no server answers: better now than after the first question has been typed."""
    try:
        return client.models()
    except AskFailed as error:
        if wanted is None or error.status not in NO_LIST:
            raise StartupError(str(error)) from error
        return [wanted]


def talk_on(talk: Talk, lines: Lines, screen: Screen) -> bool:
    """Until the person or the input ends. False where nobody watched and something failed."""
    commands = Commands(talk, screen)
    well = True
    while True:
        try:
            typed = lines.read()
            if typed.startswith("/"):
                well &= commands.run(typed)
            elif typed:
                well &= talk.ask(typed)
        except (EOFError, Quit) as end:
            if lines.is_terminal and isinstance(end, EOFError):
                screen.piece("\n")
            return well or lines.is_terminal
        except StartupError as error:
            well = False
            screen.problem(str(error))
        except KeyboardInterrupt:
            if not lines.is_terminal:
                raise
            screen.piece("\n")
            screen.note(HINT)
