"""The page: what stands on it, and what happens when somebody does something.

What a browser sends of a conversation is not believed: events say which message they are about, never what was in it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from html import escape
from importlib import resources
from typing import Any

import gradio as gr
from fastapi import FastAPI

from llava_api.cli.ui import panel
from llava_api.cli.ui.answering import BUSY, Answering, Update
from llava_api.cli.ui.client import Knobs, Trouble
from llava_api.cli.ui.examples import EXAMPLES, Example, style_of
from llava_api.cli.ui.sessions import MOST_SESSIONS, Session, Sessions
from llava_api.cli.ui.shown import is_pictures, shown, turn_of

TITLE = "llava-api"
TEMPERATURE = 0.2
"""As LLaVA's own page has it."""
MAX_TOKENS = 512
MOST_TOKENS = 4096
ANSWERS_AT_ONCE = 64
"""Of all people together; the server has a queue of its own."""
MAX_QUEUE = 256
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
CODE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
Updates = AsyncIterator[list[Any]]


def mount(app: FastAPI, page: gr.Blocks, max_file_bytes: int) -> None:
    """Put the page at the root of ``app``."""
    files = resources.files("llava_api.cli.ui")
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in SYSTEM_FONTS],
        font_mono=[gr.themes.Font(name) for name in CODE_FONTS],
    )
    gr.mount_gradio_app(
        app,
        page,
        "/",
        theme=theme,
        css=files.joinpath("style.css").read_text(encoding="utf-8") + style_of(EXAMPLES),
        head=f"<script>{files.joinpath('keys.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
        run_history=False,
        show_error=False,
        allowed_paths=[],
        max_file_size=max_file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


class Blocks(gr.Blocks):
    """Gradio writes what it could not use into its log, an API key too. This one's complaints hold no values."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise ValueError(f"{len(inputs)} values where {len(block_fn.inputs)} belong: the page is to be loaded anew")

    @staticmethod
    def _format_processing_error(
        block_fn: Any, index: int, block: Any, value: Any, is_input: bool, original_error: Exception
    ) -> str:
        return f"value {index} of an event cannot be used: {type(original_error).__name__}"


class Page:
    """The page's parts, and which event leads to what."""

    def __init__(self, answering: Answering, sessions: Sessions) -> None:
        self.answering = answering
        self.sessions = sessions
        with Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as self.blocks:
            self.build()
            self.connect()
        # What Gradio itself knows of a page is 70 KB; it would keep 10,000.
        self.blocks.state_session_capacity = MOST_SESSIONS
        self.blocks.queue(default_concurrency_limit=ANSWERS_AT_ONCE, max_size=MAX_QUEUE, api_open=False)

    def forget_closed(self) -> None:
        """What Gradio knows of a page goes with its conversation: the last values of its fields, the key among them."""
        for name in self.sessions.forget_closed():
            self.blocks.state_holder.session_data.pop(name, None)

    def build(self) -> None:
        gr.Markdown(f"<h1>{TITLE}</h1><p>Ask a LLaVA model about pictures.</p>", elem_id="title")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=280, elem_id="talk"):
                self.build_talk()
            with gr.Column(scale=2, min_width=280, elem_id="side"):
                self.build_side()
        self.knobs = [self.model, self.temperature, self.max_tokens, self.system, self.key]
        self.outputs = [self.chat, self.box, self.status, self.panel, self.stop, self.examples]

    def build_talk(self) -> None:
        self.chat = gr.Chatbot(
            label="Conversation",
            elem_id="chat",
            height="min(60vh, 44rem)",
            editable="user",
            layout="bubble",
            autoscroll=False,  # see keys.js
            buttons=["copy"],
            sanitize_html=True,
            allow_tags=False,
            latex_delimiters=[],
            feedback_options=None,
            allow_file_downloads=False,
            placeholder="Add a picture and ask about it.\n\nChoose, paste or drop one below, or take an example.",
        )
        with gr.Row(elem_id="examples") as self.examples:
            self.buttons = [
                gr.Button(example.question, elem_id=example.element, elem_classes="example", size="sm", min_width=80)
                for example in EXAMPLES
            ]
        self.status = gr.Markdown("", elem_id="status")
        self.box = gr.MultimodalTextbox(
            label="Your message",
            show_label=False,
            placeholder="Ask about the picture",
            file_count="multiple",
            file_types=["image"],
            sources=["upload"],
            lines=1,
            max_lines=8,
            max_plain_text_length=100_000,
            elem_id="box",
        )
        with gr.Row(elem_id="buttons"):
            self.stop = gr.Button("Stop (Esc)", variant="stop", visible=False, elem_id="stop", size="sm")
            self.new = gr.Button("New conversation", elem_id="new", size="sm")

    def build_side(self) -> None:
        with gr.Accordion("What the model saw", elem_id="saw"):
            # Made here alone, see panel; the browser's sanitizer would take SVG's attributes away.
            self.panel = gr.Markdown(panel.EMPTY, elem_id="panel", sanitize_html=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.model = gr.Dropdown([], label="Model", elem_id="model", allow_custom_value=True)
            self.temperature = gr.Slider(0, 2, TEMPERATURE, step=0.1, label="Temperature", elem_id="temperature")
            self.max_tokens = gr.Slider(
                1, MOST_TOKENS, MAX_TOKENS, step=1, label="Longest answer, in tokens", elem_id="max-tokens"
            )
            self.system = gr.Textbox(
                label="System prompt", placeholder="The model's own where this is empty", lines=2, elem_id="system"
            )
            self.key = gr.Textbox(
                label="API key", type="password", info="Where the server asks for one. It stays here.", elem_id="key"
            )

    def connect(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        answers: dict[str, Any] = {**quiet, "concurrency_limit": ANSWERS_AT_ONCE, "concurrency_id": "answers"}
        now: dict[str, Any] = {**quiet, "concurrency_limit": None}
        # "multiple": else a question during an answer would be dropped in the browser, without a word; and of an edited
        # question with pictures, which is told once for the pictures and once for the text, one of the two.
        self.box.submit(self.ask, [self.box, *self.knobs], self.outputs, trigger_mode="multiple", **answers)
        for button, example in zip(self.buttons, EXAMPLES, strict=True):
            button.click(self.asking(example), self.knobs, self.outputs, **answers)
        self.chat.retry(self.retry, self.knobs, self.outputs, **answers)
        self.chat.edit(self.edit, self.knobs, self.outputs, trigger_mode="multiple", **answers)
        self.chat.undo(self.undo, None, self.outputs, **now)
        self.chat.clear(self.clear, None, self.outputs, **now)
        self.new.click(self.clear, None, self.outputs, **now)
        self.stop.click(self.halt, None, None, **now)
        self.blocks.load(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.key.blur(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.key.submit(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.blocks.unload(self.leave)

    # What happens. Not in gr.HTML: its templates are compiled in the browser, which the page's policy forbids.

    async def ask(self, request: gr.Request, said: dict[str, Any], *turned: Any) -> Updates:
        session = self.session(request)
        paths = [str(path) for path in said.get("files") or []]
        async with aclosing(self.answering.ask(session, said.get("text") or "", paths, knobs_of(turned))) as updates:
            async for update in updates:
                yield drawn(session, update)

    def asking(self, example: Example) -> Callable[..., Updates]:
        async def ask(request: gr.Request, *turned: Any) -> Updates:
            session = self.session(request)
            async with aclosing(
                self.answering.ask_with(session, example.question, [example.data()], knobs_of(turned))
            ) as updates:
                async for update in updates:
                    yield drawn(session, update)

        return ask

    async def retry(self, event: gr.RetryData, request: gr.Request, *turned: Any) -> Updates:
        session = self.session(request)
        number = turn_of(session.conversation, event.index)
        async with aclosing(self.answering.ask_again(session, number, knobs_of(turned))) as updates:
            async for update in updates:
                yield drawn(session, update)

    async def edit(self, event: gr.EditData, request: gr.Request, *turned: Any) -> Updates:
        session = self.session(request)
        number = turn_of(session.conversation, event.index)
        if is_pictures(session.conversation, event.index):
            yield [gr.skip() for _ in self.outputs]
            return
        async with aclosing(self.answering.ask_again(session, number, knobs_of(turned), str(event.value))) as updates:
            async for update in updates:
                yield drawn(session, update)

    def undo(self, request: gr.Request) -> list[Any]:
        """Takes the last question back into the box."""
        session = self.session(request)
        if session.answering is not None:
            return drawn(session, Update(status=BUSY, busy=True))
        last = session.conversation.turns.pop() if session.conversation.turns else None
        return drawn(session, Update(box=last.text if last is not None else None))

    def clear(self, request: gr.Request) -> list[Any]:
        session = self.session(request)
        session.stop()
        session.conversation.turns.clear()
        return drawn(session, Update(panel=panel.EMPTY))

    def halt(self, request: gr.Request) -> None:
        self.session(request).stop()

    def leave(self, request: gr.Request) -> None:
        self.sessions.close(request.session_hash or "")

    async def list_models(self, chosen: str | None, key: str | None) -> list[Any]:
        try:
            names = await self.answering.api.models(key or "")
        except Trouble as trouble:
            return [gr.skip(), complaint(str(trouble))]
        kept = chosen if chosen in names else names[0] if names else None
        return [gr.update(choices=names, value=kept), ""]

    def session(self, request: gr.Request) -> Session:
        return self.sessions.get(request.session_hash or "")


def knobs_of(turned: tuple[Any, ...]) -> Knobs:
    """From the values of ``Page.knobs``."""
    model, temperature, max_tokens, system, key = turned
    return Knobs(str(model or ""), float(temperature), int(max_tokens), str(system or ""), str(key or ""))


def drawn(session: Session, update: Update) -> list[Any]:
    """The values of ``Page.outputs``."""
    turns = session.conversation.turns
    return [
        [{"role": message.role, "content": message.text} for message in shown(session.conversation)],
        gr.skip() if update.box is None else {"text": update.box, "files": []},
        gr.skip() if update.status is None else complaint(update.status) if update.status else "",
        gr.skip() if update.panel is None else update.panel,
        gr.update(visible=update.busy),
        gr.update(visible=not turns),
    ]


def complaint(text: str) -> str:
    return f'<p role="alert">{escape(" ".join(text.split()))}</p>'
