"""The page's parts, and its handlers of Gradio's events.

What a browser sends of a conversation is not trusted: an event says which message it is about, never what was in it.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from html import escape
from importlib import resources
from typing import Any

import gradio as gr
from fastapi import FastAPI

from llava_api.cli.api_client import ApiFailed
from llava_api.cli.ui import panel
from llava_api.cli.ui.answering import BUSY, Answering, PageSettings, Update, Updates
from llava_api.cli.ui.examples import EXAMPLES, button_images, example_image
from llava_api.cli.ui.messages import message_at, shown_messages
from llava_api.cli.ui.open_pages import MAX_PAGES, OpenPage, OpenPages

TITLE = "llava-api"
TEMPERATURE = 0.2
"""As on LLaVA's own page."""
MAX_TOKENS = 512
MAX_MAX_TOKENS = 4096
ANSWERS_AT_ONCE = 64
"""For all people together; the server has a queue of its own."""
MAX_QUEUE = 256
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
CODE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
Outputs = AsyncGenerator[list[Any], None]
"""Values of ``Page.outputs``, again and again."""


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
        css=files.joinpath("style.css").read_text(encoding="utf-8") + button_images(),
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
    """Gradio's own error messages, which are logged, hold the values that it could not use: an API key, for example."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise ValueError(f"{len(inputs)} values where {len(block_fn.inputs)} belong: reload the page")

    @staticmethod
    def _format_processing_error(
        block_fn: Any, index: int, block: Any, value: Any, is_input: bool, original_error: Exception
    ) -> str:
        return f"value {index} of an event cannot be used: {type(original_error).__name__}"


class Page:
    def __init__(self, answering: Answering, open_pages: OpenPages) -> None:
        self.answering = answering
        self.open_pages = open_pages
        with Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as self.blocks:
            self.build()
            self.connect()
        # Gradio itself keeps 70 KB for each page, and would keep 10,000 pages.
        self.blocks.state_session_capacity = MAX_PAGES
        self.blocks.queue(default_concurrency_limit=ANSWERS_AT_ONCE, max_size=MAX_QUEUE, api_open=False)

    def forget_closed(self) -> None:
        """Forget Gradio's state of closed pages too: the last values of their fields, such as the API key."""
        for name in self.open_pages.forget_closed():
            self.blocks.state_holder.session_data.pop(name, None)

    def build(self) -> None:
        gr.Markdown(f"<h1>{TITLE}</h1><p>Ask a LLaVA model about images.</p>", elem_id="title")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=280, elem_id="talk"):
                self.build_talk()
            with gr.Column(scale=2, min_width=280, elem_id="side"):
                self.build_side()
        self.settings = [self.model, self.temperature, self.max_tokens, self.system, self.key]
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
            placeholder="Add an image and ask about it.\n\nChoose, paste or drop one below, or take an example.",
        )
        with gr.Row(elem_id="examples") as self.examples:
            self.buttons = [
                gr.Button(question, elem_id=f"example-{name}", elem_classes="example", size="sm", min_width=80)
                for name, question in EXAMPLES.items()
            ]
        self.status = gr.Markdown("", elem_id="status")
        self.box = gr.MultimodalTextbox(
            label="Your message",
            show_label=False,
            placeholder="Ask about the image",
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
            # All of it is made in ``panel``; the browser's sanitizer would remove SVG's attributes.
            self.panel = gr.Markdown(panel.EMPTY, elem_id="panel", sanitize_html=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.model = gr.Dropdown([], label="Model", elem_id="model", allow_custom_value=True)
            self.temperature = gr.Slider(0, 2, TEMPERATURE, step=0.1, label="Temperature", elem_id="temperature")
            self.max_tokens = gr.Slider(
                1, MAX_MAX_TOKENS, MAX_TOKENS, step=1, label="Longest answer, in tokens", elem_id="max-tokens"
            )
            self.system = gr.Textbox(
                label="System prompt", placeholder="Empty: the model's own", lines=2, elem_id="system"
            )
            self.key = gr.Textbox(
                label="API key", type="password", info="If the server asks for one. It stays here.", elem_id="key"
            )

    def connect(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        answers: dict[str, Any] = {**quiet, "concurrency_limit": ANSWERS_AT_ONCE, "concurrency_id": "answers"}
        now: dict[str, Any] = {**quiet, "concurrency_limit": None}
        # "multiple", because the browser would otherwise drop a question during an answer without a word, and one of
        # the two events of an edited question with images (one is for the images, one for the text).
        self.box.submit(self.ask, [self.box, *self.settings], self.outputs, trigger_mode="multiple", **answers)
        for button, name in zip(self.buttons, EXAMPLES, strict=True):
            button.click(self.asking(name), self.settings, self.outputs, **answers)
        self.chat.retry(self.retry, self.settings, self.outputs, **answers)
        self.chat.edit(self.edit, self.settings, self.outputs, trigger_mode="multiple", **answers)
        self.chat.undo(self.undo, None, self.outputs, **now)
        self.chat.clear(self.clear, None, self.outputs, **now)
        self.new.click(self.clear, None, self.outputs, **now)
        self.stop.click(self.stop_answer, None, None, **now)
        self.blocks.load(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.key.blur(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.key.submit(self.list_models, [self.model, self.key], [self.model, self.status], **now)
        self.blocks.unload(self.close)

    # The handlers. The conversation is no gr.HTML: its templates are compiled in the browser, which the page's policy
    # forbids.

    async def ask(self, request: gr.Request, message: dict[str, Any], *values: Any) -> Outputs:
        page = self.page_of(request)
        paths = [str(path) for path in message.get("files") or []]
        updates = self.answering.ask(page, message.get("text") or "", paths, page_settings(values))
        async with aclosing(all_outputs(page, updates)) as outputs:
            async for output in outputs:
                yield output

    def asking(self, name: str) -> Callable[..., Outputs]:
        async def ask(request: gr.Request, *values: Any) -> Outputs:
            page = self.page_of(request)
            updates = self.answering.ask_with(page, EXAMPLES[name], example_image(name), page_settings(values))
            async with aclosing(all_outputs(page, updates)) as outputs:
                async for output in outputs:
                    yield output

        return ask

    async def retry(self, event: gr.RetryData, request: gr.Request, *values: Any) -> Outputs:
        page = self.page_of(request)
        message = message_at(page.turns, event.index)
        number = None if message is None else message.turn
        updates = self.answering.ask_again(page, number, page_settings(values))
        async with aclosing(all_outputs(page, updates)) as outputs:
            async for output in outputs:
                yield output

    async def edit(self, event: gr.EditData, request: gr.Request, *values: Any) -> Outputs:
        page = self.page_of(request)
        message = message_at(page.turns, event.index)
        if message is not None and message.is_images:
            yield [gr.skip() for _ in self.outputs]
            return
        number = None if message is None else message.turn
        updates = self.answering.ask_again(page, number, page_settings(values), str(event.value))
        async with aclosing(all_outputs(page, updates)) as outputs:
            async for output in outputs:
                yield output

    def undo(self, request: gr.Request) -> list[Any]:
        """Take the last question back into the box."""
        page = self.page_of(request)
        if page.answering is not None:
            return output_of(page, Update(status=BUSY, busy=True))
        last = page.turns.pop() if page.turns else None
        return output_of(page, Update(box=last.text if last is not None else None))

    def clear(self, request: gr.Request) -> list[Any]:
        page = self.page_of(request)
        page.stop()
        page.turns.clear()
        return output_of(page, Update(panel=panel.EMPTY))

    def stop_answer(self, request: gr.Request) -> None:
        self.page_of(request).stop()

    def close(self, request: gr.Request) -> None:
        self.open_pages.close(request.session_hash or "")

    async def list_models(self, chosen: str | None, key: str | None) -> list[Any]:
        try:
            names = await self.answering.api.with_key(key or "").models()
        except ApiFailed as failure:
            return [gr.skip(), alert(str(failure))]
        return [gr.update(choices=names, value=chosen if chosen in names else names[0]), ""]

    def page_of(self, request: gr.Request) -> OpenPage:
        return self.open_pages.get(request.session_hash or "")


def page_settings(values: tuple[Any, ...]) -> PageSettings:
    """From the values of ``Page.settings``."""
    model, temperature, max_tokens, system, key = values
    return PageSettings(str(model or ""), float(temperature), int(max_tokens), str(system or ""), str(key or ""))


async def all_outputs(page: OpenPage, updates: Updates) -> Outputs:
    async with aclosing(updates):
        async for update in updates:
            yield output_of(page, update)


def output_of(page: OpenPage, update: Update) -> list[Any]:
    """The values of ``Page.outputs``."""
    return [
        [{"role": message.role, "content": message.text} for message in shown_messages(page.turns)],
        gr.skip() if update.box is None else {"text": update.box, "files": []},
        gr.skip() if update.status is None else alert(update.status) if update.status else "",
        gr.skip() if update.panel is None else update.panel,
        gr.update(visible=update.busy),
        gr.update(visible=not page.turns),
    ]


def alert(text: str) -> str:
    return f'<p role="alert">{escape(" ".join(text.split()))}</p>'
