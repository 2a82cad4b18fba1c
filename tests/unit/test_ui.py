"""The decisions of the chat page, without Gradio and without a browser."""

import asyncio
import base64
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from llava_api.cli.api_client import ApiClient, ApiFailed
from llava_api.cli.main import main
from llava_api.cli.ui import panel
from llava_api.cli.ui.answering import BUSY, CUT, STOPPED, UPLOAD_GONE, Answering, PageSettings, Update
from llava_api.cli.ui.examples import EXAMPLES, example_image
from llava_api.cli.ui.messages import message_at, shown_messages, without_markup
from llava_api.cli.ui.open_pages import GRACE_SECONDS, MAX_PAGES, AttachedImage, ImageLimits, OpenPage, OpenPages, Turn
from llava_api.cli.ui.request_filter import RequestFilter
from llava_api.cli.ui.uploads import FORGOTTEN_SECONDS, NoRoom, Uploads
from llava_api.errors import BadImage
from llava_api.images.decode import Limits
from llava_api.images.previews import THUMBNAIL_SIDE, thumbnail_of
from llava_api.protocol.explain import ExplainedImage, Explanation
from llava_api.settings import Settings
from tests.support.clock import Clock
from tests.support.scripted_api import MODELS, ScriptedApi, scripted_api

LIMITS = ImageLimits(20_000, 30_000, 3, Limits(250_000, 16_384, 200))
SETTINGS = PageSettings("m", 0.2, 16, "", "")


def png(width: int = 40, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def image(width: int = 40, height: int = 20) -> AttachedImage:
    return LIMITS.read([png(width, height)], [])[0]


# The conversation


def test_messages_hold_images_first_and_leave_out_what_got_no_answer() -> None:
    red = image()
    turns = [Turn("What?", (red,), "A square."), Turn("Lost", error="no server"), Turn("Is it red?")]
    messages = OpenPage(turns).conversation("Be brief.").messages()
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["image_url", "text"]
    assert messages[1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert messages[3] == {"role": "user", "content": "Is it red?"}
    assert OpenPage(turns).sent_images() == [red]
    assert OpenPage(turns[:1]).conversation(" ").messages()[0]["role"] == "user"


def test_going_back_forgets_what_came_after() -> None:
    page = OpenPage([Turn("a", answer="1", note="cut"), Turn("b", answer="2")])
    page.back_to(0)
    assert page.turns == [Turn("a")]


@pytest.mark.parametrize(
    ("files", "earlier", "message"),
    [
        ([b"x" * 20_001], 0, "The file is larger than 20.0 kB"),
        ([png(), b"nonsense"], 0, "Image 2: The image cannot be read"),
        ([png(1000, 251)], 0, "more than the 250000 pixels"),
        ([png(), png()], 2, "may have 3 images, these would be 4"),
        ([b"x" * 15_000, b"x" * 15_001], 0, "larger than 30.0 kB together"),
    ],
)
def test_images_beyond_the_limits_are_refused(files: list[bytes], earlier: int, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        LIMITS.read(files, [image()] * earlier)


def test_the_limits_are_the_servers_own_by_default() -> None:
    settings = Settings()
    limits = ImageLimits.from_settings(settings)
    assert (limits.one_bytes, limits.header.max_pixels) == (settings.max_image_bytes, settings.max_image_pixels)


def test_a_thumbnail_is_small_and_upright() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(buffer, "JPEG", exif=exif)
    made = thumbnail_of(buffer.getvalue(), Limits(64_000_000, 16_384, 200))
    assert (made.width, made.height, made.format) == (1000, 2000, "JPEG")
    with Image.open(io.BytesIO(base64.b64decode(made.url.partition(",")[2]))) as small:
        assert small.size == (THUMBNAIL_SIDE // 2, THUMBNAIL_SIDE)


def test_the_examples_are_images() -> None:
    for name in EXAMPLES:
        with Image.open(io.BytesIO(example_image(name))) as opened:
            assert min(opened.size) >= 200


# What is shown


def test_shown_messages_know_their_turn() -> None:
    turns = [Turn("a", (image(),), "1"), Turn("b", error="no server")]
    messages = shown_messages(turns)
    assert [(message.role, message.turn) for message in messages] == [
        ("user", 0),
        ("user", 0),
        ("assistant", 0),
        ("user", 1),
        ("assistant", 1),
    ]
    assert messages[0].text.startswith('<div class="sent"><img src="data:image/webp;base64,')
    assert messages[4].text == "⚠ no server"
    assert [message_at(turns, index) for index in (1, [3, 0], 5, -1)] == [messages[1], messages[3], None, None]
    assert [message.is_images for message in messages] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("1 < 2 and **bold**", "1 < 2 and **bold**"),
        ("<img src=x>", "&lt;img src=x>"),
        ("</div><!-- x -->", "&lt;/div>&lt;!-- x -->"),
        ("![x](http://example.invalid/x.png)", "!\\[x](http://example.invalid/x.png)"),
        ("`<b>` and <b>", "`<b>` and &lt;b>"),
        ("```html\n<b>![x](y)\n```\n<b>", "```html\n<b>![x](y)\n```\n&lt;b>"),
    ],
)
def test_answers_lose_their_tags_and_images_but_not_in_code(markdown: str, expected: str) -> None:
    assert without_markup(markdown) == expected


# The panel


def explanation(**image: Any) -> Explanation:
    first: dict[str, Any] = {
        "param": "x", "width": 400, "height": 200, "format": "PNG", "orientation": 1, "shown_width": 400,
        "shown_height": 200, "mode": "anyres", "detail": "high", "grid": [2, 1], "tiles": 2, "image_tokens": 1700,
        "pixels_shape": [3, 3, 336, 336], "pixels_sha256": "0",
    }  # fmt: skip
    return Explanation(
        model="m", version="1.6", family="f", family_reason="<b>because", image_mode="anyres", image_mode_reason="r",
        prompt="USER: <image>\n\nWhat?", prompt_token_ids=[], prompt_tokens=1720, text_tokens=20, image_tokens=1700,
        context_length=4096, context_left=2376, stop_token_ids=[], stop_texts=[], placeholders=[],
        images=[ExplainedImage.model_validate(first | image)],
    )  # fmt: skip


def test_the_panel_draws_tiles_and_counts() -> None:
    html = panel.panel(explanation(), [image(400, 200)])
    assert "<td>1,720</td>" in html
    assert "2 &times; 1 tiles of 336 &times; 336 pixels, and the whole image as one" in html
    assert 'viewBox="0 0 672 336"' in html
    assert html.count('<path d="M336 0V336"/>') == 1
    assert html.count('href="data:image/webp') == 2


def test_the_panel_shows_text_as_text_in_one_block() -> None:
    html = panel.panel(explanation(format="<script>"), [])
    assert "<script>" not in html
    assert "<b>because" not in html
    assert "USER: &lt;image&gt;&#10;&#10;What?" in html
    assert "\n" not in html


@pytest.mark.parametrize("end", ["\n\n", "\r\r", "\r\n\r\n"])
def test_no_text_ends_the_panels_html(end: str) -> None:
    """After a blank line the rest would be read as Markdown, whose links could be scripts."""
    evil = f"x{end}[y](javascript:z)"
    told = explanation(format=evil, mode=evil).model_copy(
        update=dict.fromkeys(("prompt", "version", "family", "family_reason", "image_mode", "image_mode_reason"), evil)
    )
    html = panel.panel(told, []) + panel.problem(evil)
    assert html.count("[y]") == 9
    assert len(html.splitlines()) == 1


@pytest.mark.parametrize(
    ("cut", "size", "canvas", "expected"),
    [
        (False, (400, 200), (336, 336), ((336, 168), (0, 84))),
        (True, (400, 200), (336, 336), ((672, 336), (-168, 0))),
        (False, (336, 672), (672, 336), ((168, 336), (252, 0))),
    ],
)
def test_where_an_image_is_on_its_tiles(cut: bool, size: Any, canvas: Any, expected: Any) -> None:
    assert panel.placed(cut, size, canvas) == expected


# Uploads


def test_an_upload_is_found_only_by_its_path_and_dropped_with_its_copies(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "uploads"
    folder.mkdir()
    uploads = Uploads(folder, 1000)
    path = uploads.save("../../a picture.PNG", b"abc")
    assert (path.parent, path.suffix, path.read_bytes()) == (folder, ".png", b"abc")
    assert uploads.find(str(path)) == path
    (folder / "link.png").symlink_to(tmp_path / "secret")
    for strange in (
        "/etc/passwd",
        str(tmp_path / "secret"),
        f"{folder}/../secret",
        f"{folder}/link.png",
        str(folder),
        f"{folder}/{'x' * 300}",
        f"{folder}/\0",
        "",
    ):
        assert uploads.find(strange) is None
    (folder / "copies").mkdir()
    (folder / "copies" / path.name).write_bytes(b"abc")
    (folder / "link.png").unlink()
    uploads.drop(path)
    assert list(folder.iterdir()) == []


def test_uploads_have_a_limit_and_are_forgotten(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 5)
    path = uploads.save("a.png", b"abc")
    with pytest.raises(NoRoom):
        uploads.save("b.png", b"abc")
    uploads.forget_old()
    assert path.exists()
    os.utime(path, (0, 0))
    uploads.forget_old(FORGOTTEN_SECONDS)
    assert uploads.files() == []


def test_what_is_being_received_has_the_same_limit(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 5)
    with uploads.receiving() as came:
        came(4)
        with uploads.receiving() as another:
            another(1)
            with pytest.raises(NoRoom):
                another(1)
        assert uploads.receiving_bytes == 4
        came(1)
    assert uploads.receiving_bytes == 0


# Open pages


def test_pages_are_apart_and_forgotten_after_a_while() -> None:
    clock = Clock()
    pages = OpenPages(clock)
    one = pages.get("one")
    assert pages.get("one") is one
    assert pages.get("two") is not one
    pages.close("one")
    pages.close("unknown")
    assert pages.forget_closed() == []
    clock.now += GRACE_SECONDS
    assert pages.forget_closed() == ["one"]
    assert pages.get("one") is not one


def test_a_page_that_comes_back_keeps_its_conversation() -> None:
    clock = Clock()
    pages = OpenPages(clock)
    one = pages.get("one")
    pages.close("one")
    assert pages.get("one") is one
    clock.now += GRACE_SECONDS
    assert pages.forget_closed() == []


def test_the_page_used_longest_ago_goes_first() -> None:
    pages = OpenPages()
    first = pages.get("first")
    for number in range(MAX_PAGES):
        pages.get(str(number))
    assert pages.get("first") is not first


def test_conversations_have_a_limit_of_memory_together() -> None:
    pages = OpenPages(max_bytes=3 * Turn("", (image(),)).size_bytes())
    kept = [pages.get(name) for name in ("first", "second", "third")]
    for page in kept:
        page.turns.append(Turn("", (image(),)))
    assert pages.get("first") is kept[0]
    kept[0].turns.append(Turn("Much text"))
    assert pages.get("fourth") is not None
    assert list(pages.pages) == ["third", "first", "fourth"]
    alone = OpenPages(max_bytes=1)
    alone.get("only").turns.append(Turn("Much text"))
    assert alone.get("only").turns


# With a server


@pytest.fixture
def server() -> Any:
    with scripted_api() as api:
        yield api


def client(base_url: str) -> ApiClient:
    return ApiClient(base_url, start_advice="start one with `llava-api serve`", key_advice="enter yours")


@pytest_asyncio.fixture
async def answering(server: ScriptedApi, tmp_path: Path) -> AsyncIterator[Answering]:
    api = client(server.base_url)
    yield Answering(api, Uploads(tmp_path, 100_000), LIMITS)
    await api.aclose()


async def updates(answering: Answering, page: OpenPage, text: str, *paths: str) -> list[Update]:
    return [update async for update in answering.ask(page, text, paths, SETTINGS)]


async def test_an_answer_comes_and_its_file_goes(answering: Answering, server: ScriptedApi) -> None:
    page = OpenPage()
    path = answering.uploads.save("a.png", png())
    got = await updates(answering, page, "What?", str(path))
    assert (got[0].box, got[0].busy, got[-1].busy) == ("", True, False)
    assert got[-1].panel == panel.UNKNOWN
    (turn,) = page.turns
    assert (turn.answer, turn.error, turn.note) == ("A red circle.", "", "")
    assert answering.uploads.files() == []
    assert page.answering is None
    server.finish_reason = "length"
    await updates(answering, page, "And?")
    assert page.turns[1].note == CUT


async def test_a_stop_keeps_what_was_said(answering: Answering, server: ScriptedApi) -> None:
    page = OpenPage()
    server.held.set()
    async for _ in answering.ask(page, "Say much", [], SETTINGS):
        if page.turns[0].answer and page.answering is not None:
            assert [update.status for update in await updates(answering, page, "Now")] == [BUSY]
            page.stop()
    assert (page.turns[0].answer, page.turns[0].note) == ("A ", STOPPED)
    assert await asyncio.to_thread(server.hung_up.wait, 10)


async def test_leaving_hangs_up(answering: Answering, server: ScriptedApi) -> None:
    page = OpenPage()
    server.held.set()
    asking = answering.ask(page, "Say much", [], SETTINGS)
    async for _ in asking:
        if page.turns[0].answer:
            break
    await asking.aclose()  # type: ignore[attr-defined]
    assert page.answering is None
    assert await asyncio.to_thread(server.hung_up.wait, 10)


async def test_a_file_that_is_gone_or_wrong_asks_nothing(answering: Answering, server: ScriptedApi) -> None:
    page = OpenPage()
    assert [update.status for update in await updates(answering, page, "What?", "/etc/passwd")] == [UPLOAD_GONE]
    wrong = answering.uploads.save("a.png", b"nonsense")
    (told,) = await updates(answering, page, "What?", str(wrong))
    assert told.status.startswith("The image cannot be read")
    assert wrong.exists()
    assert (server.requests, page.turns) == ([], [])


async def test_the_models_and_the_key(answering: Answering, server: ScriptedApi) -> None:
    server.needed_key = "k"
    assert await answering.api.with_key(" k ").models() == list(MODELS)
    with pytest.raises(ApiFailed, match="asks for an API key"):
        await answering.api.models()


async def test_a_key_that_cannot_be_sent_is_reported(answering: Answering) -> None:
    with pytest.raises(ApiFailed, match="The API key has letters"):
        await answering.api.with_key("sk-\N{CYRILLIC SMALL LETTER KA}").models()


async def test_without_a_server_the_trouble_says_how_to_start_one() -> None:
    api = client("http://127.0.0.1:9/v1")
    with pytest.raises(ApiFailed, match="llava-api serve"):
        await api.models()
    await api.aclose()


# The request filter


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body.decode() or "page")(scope, receive, send)


@pytest_asyncio.fixture
async def visitor() -> AsyncIterator[httpx.AsyncClient]:
    filtered = RequestFilter(echo, ("chat.example.com",), lambda path: path == "/uploads/a.png")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(filtered), base_url="http://127.0.0.1:7860") as client:
        yield client


async def test_the_filter_lets_the_page_through_with_its_policy(visitor: httpx.AsyncClient) -> None:
    reply = await visitor.get("/")
    assert (reply.status_code, reply.text) == (200, "page")
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert "http" not in reply.headers["content-security-policy"]
    assert (await visitor.get("/", headers={"Host": "chat.example.com"})).status_code == 200
    assert (await visitor.get("/", headers={"Host": "other.example.com"})).status_code == 403


@pytest.mark.parametrize(
    "path", ["/gradio_api/info", "/gradio_api/proxy=http://x/", "/assets/../secret", "/gradio_api/run/x", "/docs"]
)
async def test_the_filter_knows_what_is_needed(visitor: httpx.AsyncClient, path: str) -> None:
    assert (await visitor.get(path)).status_code == 404
    assert (await visitor.delete("/")).status_code == 404


async def test_the_filter_reads_which_files_a_question_names(visitor: httpx.AsyncClient) -> None:
    join = "/gradio_api/queue/join"
    good = await visitor.post(join, json={"data": [{"files": [{"path": "/uploads/a.png"}]}]})
    assert good.json() == {"data": [{"files": [{"path": "/uploads/a.png"}]}]}
    for path in ("/etc/passwd", "http://127.0.0.1/", None, 7):
        assert (await visitor.post(join, json={"data": [[{"deep": {"path": path}}]]})).status_code == 403
    assert (await visitor.post(join, content=b"{")).status_code == 400


@pytest.mark.parametrize("path", ["queue/join", "cancel", "reset"])
async def test_the_filter_reads_no_endless_body_and_no_endless_name(visitor: httpx.AsyncClient, path: str) -> None:
    url = f"/gradio_api/{path}"
    assert (await visitor.post(url, content=b" " * 2_000_001)).status_code == 413
    assert (await visitor.post(url, json={"session_hash": "8sx1kk0"})).status_code == 200
    for name in ("x" * 65, "a/b", 7, ["x"]):
        assert (await visitor.post(url, json={"session_hash": name})).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "http://attacker.example.com"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_the_filter_keeps_other_pages_out(
    visitor: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await visitor.post("/gradio_api/cancel", json={}, headers=headers)).status_code == status


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--allow-anonymous"),
        (["--base-url", "localhost:8000"], "--base-url must start with http"),
        (["--max-image-bytes", "0"], "max-image-bytes"),
    ],
)
def test_a_mistake_in_the_command_line_is_reported_in_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ui", *arguments])
    assert said in str(ended.value)


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["ui"])
    assert "pip install 'llava-api[ui]'" in str(ended.value)


def test_what_decides_needs_neither_gradio_nor_the_server() -> None:
    program = (
        "import sys, llava_api.cli.ui.answering, llava_api.cli.ui.request_filter\n"
        "heavy = {'gradio', 'torch', 'vllm', 'transformers', 'llava_api.server', 'llava_api.engine'}\n"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
