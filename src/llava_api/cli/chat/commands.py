"""What can be typed with a slash in front."""

import os
from collections.abc import Callable

from llava_api.cli.chat.pictures import names_in, open_picture, path_in
from llava_api.cli.chat.saved import load, save
from llava_api.cli.chat.screen import Screen
from llava_api.cli.chat.talk import Talk
from llava_api.errors import StartupError

COMMANDS = {
    "/image": ("FILE|URL ...", "a picture for the next question"),
    "/new": ("", "begin anew: nothing said, no pictures"),
    "/system": ("TEXT", 'set the system prompt ("" for the model\'s own); without TEXT, show it'),
    "/save": ("FILE.json", "write the conversation into a file"),
    "/load": ("FILE.json", "go on with a conversation from a file"),
    "/help": ("", "this list"),
    "/quit": ("", "end"),
}
"""Command -> what it takes, what it does."""
OTHERWISE = """\
Several lines: end a line with \\, or begin with \"\"\" and end with \"\"\".
Ctrl-C stops an answer; the arrow keys bring back what was typed, Tab completes."""


class Quit(Exception):
    """The person wants to go."""


class Commands:
    def __init__(self, talk: Talk, screen: Screen) -> None:
        self.talk = talk
        self.screen = screen
        self.known: dict[str, Callable[[str], bool | None]] = {
            "/image": self.image,
            "/new": self.new,
            "/system": self.system,
            "/save": self.save,
            "/load": self.load,
            "/help": self.help,
            "/quit": self.quit,
        }

    def run(self, line: str) -> bool:
        """False where an answer failed, and that was shown. Raises StartupError that says what went wrong, and Quit."""
        name, _, rest = line.partition(" ")
        known = self.known.get(name.lower())
        if known is None:
            if all(os.path.isfile(path) for path in names_in(line)):
                # Dropped on the terminal.
                raise StartupError(f"to show a picture, type: /image {line}")
            raise StartupError(f"{name} is no command: /help lists them (a question cannot begin with a slash)")
        return known(rest.strip()) is not False

    def image(self, rest: str) -> None:
        if not rest:
            raise usage("/image")
        # All of them before the first is taken: a wrong name leaves everything as it was.
        for picture in [open_picture(name) for name in names_in(rest)]:
            self.talk.attach(picture)

    def new(self, rest: str) -> None:
        self.talk.begin_anew()
        self.screen.note("A new conversation.")

    def system(self, rest: str) -> None:
        if rest:
            self.talk.set_system(None if rest == '""' else rest)
        said = self.talk.conversation.system
        self.screen.note("The system prompt is the model's own." if said is None else f"The system prompt: {said}")

    def save(self, rest: str) -> None:
        if not rest:
            raise usage("/save")
        if not self.talk.conversation.turns:
            raise StartupError("there is nothing to save yet")
        path = path_in(rest)
        save(path, self.talk.conversation, self.talk.model, self.talk.sampling)
        self.screen.note(f"Saved to {path}.")

    def load(self, rest: str) -> bool:
        if not rest:
            raise usage("/load")
        return self.talk.go_on_with(load(path_in(rest)))

    def help(self, rest: str) -> None:
        width = max(len(f"{name} {takes}") for name, (takes, _) in COMMANDS.items())
        for name, (takes, does) in COMMANDS.items():
            self.screen.note(f"{f'{name} {takes}':{width}}  {does}", "")
        self.screen.note(OTHERWISE, "")

    def quit(self, rest: str) -> None:
        raise Quit


def usage(name: str) -> StartupError:
    takes, does = COMMANDS[name]
    return StartupError(f"{name} {takes}: {does}")
