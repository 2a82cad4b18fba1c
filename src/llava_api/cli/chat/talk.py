"""One conversation with one server: its state between the turns, and a turn."""

from collections.abc import Sequence
from dataclasses import replace

from llava_api.cli.chat.client import Answer, AskFailed, Client
from llava_api.cli.chat.conversation import Conversation, text_of
from llava_api.cli.chat.pictures import Picture
from llava_api.cli.chat.sampling import Sampling
from llava_api.cli.chat.saved import Loaded
from llava_api.cli.chat.screen import Screen
from llava_api.errors import BadImage, StartupError


class Talk:
    def __init__(
        self,
        client: Client,
        models: Sequence[str],
        model: str,
        sampling: Sampling,
        conversation: Conversation,
        screen: Screen,
        watched: bool,
    ) -> None:
        """``models``: what the server has. ``watched``: a person types: Ctrl-C is for the answer alone."""
        self.client = client
        self.models = models
        self.model = model
        self.sampling = sampling
        self.conversation = conversation
        self.screen = screen
        self.watched = watched
        self.waiting: list[Picture] = []
        """Pictures for the next question."""

    def attach(self, picture: Picture) -> None:
        """Raises StartupError for a damaged file."""
        try:
            self.screen.picture(picture)
        except BadImage as error:
            raise StartupError(f"{picture.label}: {error.message}") from error
        self.waiting.append(picture)

    def begin_anew(self) -> None:
        """Nothing said and no pictures; the system prompt stays."""
        self.conversation = Conversation(self.conversation.system)
        self.waiting = []

    def set_system(self, text: str | None) -> None:
        self.conversation = replace(self.conversation, system=text)

    def go_on_with(self, loaded: Loaded) -> bool:
        """As ``answer`` says: a question that was left without an answer is asked now."""
        self.conversation, self.sampling, self.waiting = loaded.conversation.before_question(), loaded.sampling, []
        if loaded.model is not None and loaded.model in self.models:
            self.model = loaded.model
        for message in loaded.conversation.messages():
            self.screen.note(f"{message['role']}: {text_of(message)}")
        if loaded.model not in (None, self.model):
            self.screen.note(f"This was said to {loaded.model}, which is not here: {self.model} goes on.")
        if loaded.conversation == self.conversation:
            return True
        return self.answer(loaded.conversation)

    def ask(self, text: str) -> bool:
        """Whether there was an answer; what went wrong is shown, and the conversation is as it was before."""
        asked = self.conversation.asked(text, [picture.url for picture in self.waiting])
        return self.answer(asked)

    def answer(self, asked: Conversation) -> bool:
        """The same for a conversation that ends with a question."""
        answer: Answer | None = None
        try:
            with (
                self.screen.waiting("thinking") as spinner,
                self.client.ask(self.model, asked.messages(), self.sampling) as answer,
            ):
                for piece in answer:
                    spinner.over()
                    self.screen.piece(piece)
            self.screen.end_of_answer()
        except AskFailed as failure:
            self.screen.end_of_answer()
            self.tell(failure)
            return False
        except KeyboardInterrupt:
            if not self.watched:
                raise
            self.screen.end_of_answer()
            self.stopped(asked, "" if answer is None else answer.text)
            return True
        if answer.finish_reason == "length":
            self.screen.note("(cut at its longest length)")
        self.conversation = asked.answered(answer.text)
        self.waiting = []
        return True

    def stopped(self, asked: Conversation, said: str) -> None:
        """What was on the screen is what was said: the model sees it in the next turn."""
        if not said:
            self.screen.note("(stopped; the question is forgotten)")
            return
        self.conversation = asked.answered(said)
        self.waiting = []
        self.screen.note("(stopped; what was said so far stays in the conversation)")

    def tell(self, failure: AskFailed) -> None:
        self.screen.problem(str(failure))
        if failure.again:
            self.screen.note("The question was left out of the conversation; you can ask it again.")
            return
        # The pictures may be what was refused: kept, they would spoil the next question as well.
        left_out = "The question and its pictures were" if self.waiting else "The question was"
        self.waiting = []
        self.screen.note(f"{left_out} left out of the conversation.")
