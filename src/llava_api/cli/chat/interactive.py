"""``llava-api chat`` without --query: a conversation at a prompt."""

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from llava_api.cli.api_client import ApiClient, ApiFailed
from llava_api.cli.chat.files import ImageFile, load, names_in, open_image, path_in, save
from llava_api.cli.chat.own_server import open_endpoint
from llava_api.cli.chat.prompt import Prompt
from llava_api.cli.chat.screen import Screen, Spinner
from llava_api.cli.conversation import Conversation, Sampling, text_of
from llava_api.cli.endpoint import Endpoint, without_password
from llava_api.errors import BadImage, StartupError

HINT = "/help lists the commands; /quit or Ctrl-D ends."
NO_MODEL_LIST = (404, 405, 501)
"""Statuses of servers that do not list their models."""
COMMANDS = {
    "/image": ("FILE|URL ...", "an image for the next question"),
    "/new": ("", "start a new conversation, without images"),
    "/system": ("TEXT", 'set the system prompt ("" for the model\'s own); without TEXT, show it'),
    "/model": ("NAME", "let another of the server's models answer; without NAME, list them"),
    "/save": ("FILE.json", "write the conversation into a file"),
    "/load": ("FILE.json", "continue a conversation from a file"),
    "/help": ("", "this list"),
    "/quit": ("", "end"),
}
"""Command -> its arguments, what it does."""
MORE_HELP = """\
Several lines: end a line with \\, or begin with \"\"\" and end with \"\"\".
Ctrl-C stops an answer; the arrow keys bring back earlier lines, Tab completes."""


class Quit(Exception):
    """The person typed /quit."""


def client_of(endpoint: Endpoint) -> ApiClient:
    return ApiClient(
        endpoint.base_url,
        endpoint.key,
        start_advice="start one with `llava-api serve` in another terminal, or let --serve start one for this chat",
        key_advice="name a file with it (--api-key-file), or set OPENAI_API_KEY",
        max_retries=2,
    )


def converse(chosen: argparse.Namespace, sampling: Sampling) -> int:
    """Return the exit code: 1 if something failed and no person watched. Raises StartupError."""
    screen = Screen(draw=not chosen.no_preview)
    images = [open_image(name) for name in chosen.images]
    prompt = Prompt(tuple(COMMANDS), colours=screen.colours)
    # A runner turns Ctrl-C during an answer into the cancellation of that answer.
    with open_endpoint(chosen, screen.loading) as endpoint, asyncio.Runner() as runner:
        chat = Chat(endpoint, runner, sampling, Conversation(chosen.system or None), screen, prompt.is_terminal)
        with closing(chat):
            chat.choose_model(endpoint.model)
            if prompt.is_terminal:
                screen.heading(f"llava-api chat: {chat.model} at {without_password(endpoint.base_url)}")
                screen.note(HINT)
            for image in images:
                chat.attach(image)
            return 0 if read_and_answer(chat, prompt, screen) else 1


def read_and_answer(chat: "Chat", prompt: Prompt, screen: Screen) -> bool:
    """Until the person or the input ends. False if no person watched and something failed."""
    commands = Commands(chat, screen)
    succeeded = True
    while True:
        try:
            typed = prompt.read()
            if typed.startswith("/"):
                succeeded &= commands.run(typed)
            elif typed:
                succeeded &= chat.ask(typed)
        except (EOFError, Quit) as end:
            if prompt.is_terminal and isinstance(end, EOFError):
                screen.write("\n")
            return succeeded or prompt.is_terminal
        except StartupError as error:
            succeeded = False
            screen.problem(str(error))
        except KeyboardInterrupt:
            if not prompt.is_terminal:
                raise
            screen.write("\n")
            screen.note(HINT)


class Chat:
    """The conversation, what the next question is asked with, and the client that asks it."""

    def __init__(
        self,
        endpoint: Endpoint,
        runner: asyncio.Runner,
        sampling: Sampling,
        conversation: Conversation,
        screen: Screen,
        is_watched: bool,
    ) -> None:
        """``is_watched``: a person is at the terminal, whose Ctrl-C stops only the answer."""
        self.client = client_of(endpoint)
        self.runner = runner
        self.models: Sequence[str] = ()
        self.model = ""
        self.sampling = sampling
        self.conversation = conversation
        self.screen = screen
        self.is_watched = is_watched
        self.images: list[ImageFile] = []
        """For the next question."""

    def close(self) -> None:
        self.runner.run(self.client.aclose())

    def choose_model(self, wanted: str | None) -> None:
        """Raises ApiFailed if no server answers: that should be known before the first question is typed."""
        try:
            self.models = self.runner.run(self.client.models())
        except ApiFailed as error:
            if wanted is None or error.status not in NO_MODEL_LIST:
                raise
            self.models = [wanted]
        self.model = wanted or self.models[0]

    def attach(self, image: ImageFile) -> None:
        """Raises StartupError for a damaged file."""
        try:
            self.screen.image(image)
        except BadImage as error:
            raise StartupError(f"{image.label}: {error.message}") from error
        self.images.append(image)

    def ask(self, text: str) -> bool:
        """Whether there was an answer; a failure is shown and leaves the conversation as it was."""
        return self.answer(self.conversation.asked(text, [image.url for image in self.images]))

    def answer(self, asked: Conversation) -> bool:
        """As ``ask``, for a conversation that ends with a question."""
        texts: list[str] = []
        finish_reason = None
        try:
            with self.screen.spinner("thinking") as spinner:
                finish_reason = self.runner.run(self.receive(asked, spinner, texts))
            self.screen.end_line()
        except ApiFailed as failure:
            self.screen.end_line()
            self.show_failure(failure)
            return False
        except KeyboardInterrupt:
            if not self.is_watched:
                raise
            self.screen.end_line()
            if not texts:
                self.screen.note("(stopped; the question is forgotten)")
                return True
            # The model sees in the next turn what the person saw of the answer.
            self.screen.note("(stopped; the answer so far stays in the conversation)")
        if finish_reason == "length":
            self.screen.note("(cut at its maximum length)")
        self.conversation = asked.answered("".join(texts))
        self.images = []
        return True

    async def receive(self, asked: Conversation, spinner: Spinner, texts: list[str]) -> str | None:
        """Show an answer as it arrives and add its parts to ``texts``; return why it ended."""
        async with self.client.ask(self.model, asked.messages(), self.sampling) as answer:
            async for text in answer:
                spinner.stop()
                texts.append(text)
                self.screen.write(text)
            return answer.finish_reason

    def show_failure(self, failure: ApiFailed) -> None:
        self.screen.problem(str(failure))
        if failure.can_retry:
            self.screen.note("The question was left out of the conversation; you can ask it again.")
            return
        # The server may have refused the images: if they were kept, they would spoil the next question as well.
        left_out = "The question and its images were" if self.images else "The question was"
        self.images = []
        self.screen.note(f"{left_out} left out of the conversation.")


class Commands:
    """The methods of the ``COMMANDS``, which share their names."""

    def __init__(self, chat: Chat, screen: Screen) -> None:
        self.chat = chat
        self.screen = screen

    def run(self, line: str) -> bool:
        """False if an answer failed, which has been shown. Raises StartupError that says what went wrong, and Quit."""
        name, _, argument = line.partition(" ")
        name = name.lower()
        if name not in COMMANDS:
            if all(os.path.isfile(path) for path in names_in(line)):
                # A file was dropped on the terminal.
                raise StartupError(f"to show an image, type: /image {line}")
            raise StartupError(f"{name} is no command: /help lists them (a question cannot begin with a slash)")
        takes, does = COMMANDS[name]
        if takes.startswith("FILE") and not argument.strip():
            raise StartupError(f"{name} {takes}: {does}")
        run: Callable[[str], bool | None] = getattr(self, name[1:])
        return run(argument.strip()) is not False

    def image(self, argument: str) -> None:
        # Open all before the first is attached: a wrong name changes nothing.
        for image in [open_image(name) for name in names_in(argument)]:
            self.chat.attach(image)

    def new(self, argument: str) -> None:
        self.chat.conversation = Conversation(self.chat.conversation.system)
        self.chat.images = []
        self.screen.note("A new conversation.")

    def system(self, argument: str) -> None:
        if argument:
            system = None if argument == '""' else argument
            self.chat.conversation = replace(self.chat.conversation, system=system)
        system = self.chat.conversation.system
        self.screen.note("The system prompt is the model's own." if system is None else f"The system prompt: {system}")

    def model(self, argument: str) -> None:
        chat = self.chat
        if argument and argument not in chat.models:
            raise StartupError(f"the server has no model {argument}; it has {', '.join(chat.models)}")
        chat.model = argument or chat.model
        self.screen.note(f"{chat.model} answers. The server has {', '.join(chat.models)}.")

    def save(self, argument: str) -> None:
        if not self.chat.conversation.turns:
            raise StartupError("there is nothing to save yet")
        path = path_in(argument)
        save(path, self.chat.conversation, self.chat.model, self.chat.sampling)
        self.screen.note(f"Saved to {path}.")

    def load(self, argument: str) -> bool:
        """Continue a saved conversation; a question at its end that has no answer is asked at once."""
        saved, chat = load(path_in(argument)), self.chat
        conversation = saved.conversation()
        chat.conversation, chat.sampling, chat.images = conversation.without_open_question(), saved.sampling(), []
        for message in conversation.messages():
            self.screen.note(f"{message['role']}: {text_of(message)}")
        if saved.model is not None and saved.model in chat.models:
            chat.model = saved.model
        elif saved.model is not None:
            self.screen.note(f"The server does not have {saved.model}, which answered here: {chat.model} continues.")
        return conversation == chat.conversation or chat.answer(conversation)

    def help(self, argument: str) -> None:
        width = max(len(f"{name} {takes}") for name, (takes, _) in COMMANDS.items())
        for name, (takes, does) in COMMANDS.items():
            self.screen.note(f"{f'{name} {takes}':{width}}  {does}", "")
        self.screen.note(MORE_HELP, "")

    def quit(self, argument: str) -> None:
        raise Quit
