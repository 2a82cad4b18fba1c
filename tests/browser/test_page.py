"""The page with a scripted server: stopping, troubles, settings, several people, bad answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import Ui, Watch, opened, running_ui
from tests.support.scripted_api import MODELS, ScriptedApi, scripted_api
from tests.support.waiting import wait_until

LEFT_SECONDS = 20


@pytest.fixture(scope="module")
def one_api() -> Iterator[ScriptedApi]:
    with scripted_api() as api:
        yield api


@pytest.fixture(scope="module")
def ui(one_api: ScriptedApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with running_ui(one_api.base_url, tmp_path_factory.mktemp("ui")) as running:
        yield running


@pytest.fixture
def api(one_api: ScriptedApi) -> Iterator[ScriptedApi]:
    """The shared API, reset."""
    one_api.held.clear()
    vars(one_api).update(vars(ScriptedApi(one_api.port)))
    yield one_api
    one_api.held.clear()


@pytest.fixture
def page(api: ScriptedApi, context: BrowserContext, ui: Ui, watch: Watch) -> Page:
    return opened(context, ui.url, watch)


def send(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(text)
    page.get_by_role("textbox", name="Your message").press("Enter")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_hangs_up_and_keeps_what_was_said(page: Page, api: ScriptedApi, watch: Watch, how: str) -> None:
    api.held.set()
    send(page, "Say much")
    expect(page.locator("#chat .bot.message")).to_have_text("A")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert api.hung_up.wait(LEFT_SECONDS)
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#chat .bot.message")).to_contain_text("Stopped.")
    api.held.clear()
    send(page, "And now?")
    expect(page.locator("#chat .bot.message").last).to_have_text("A red circle.")
    assert [message["content"] for message in api.requests[-1]["messages"]] == ["Say much", "A ", "And now?"]
    assert watch.complaints == []


def test_a_question_during_an_answer_has_to_wait_and_stays(page: Page, api: ScriptedApi, watch: Watch) -> None:
    api.pieces = ["A "] * 50
    api.seconds_between = 0.1
    send(page, "Say much")
    expect(page.locator("#chat .bot.message")).to_contain_text("A A")
    send(page, "And now?")
    expect(page.get_by_role("alert")).to_contain_text("An answer is in progress")
    said = page.locator("#chat .bot.message").inner_text()
    expect(page.locator("#chat .bot.message")).to_contain_text(f"{said} A A A")
    expect(page.get_by_role("alert")).to_contain_text("An answer is in progress")
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("And now?")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert watch.complaints == []


def test_a_long_answer_is_followed_until_somebody_scrolls_up(page: Page, api: ScriptedApi, watch: Watch) -> None:
    api.pieces = [f"Line {number}\n\n" for number in range(150)]
    api.seconds_between = 0.04
    talk = page.get_by_role("log")
    above = "element => Math.round(element.scrollTop)"
    below = "element => element.scrollHeight - element.clientHeight - element.scrollTop"
    send(page, "Say much")
    expect(talk).to_contain_text("Line 40")
    assert talk.evaluate(below) < 100
    talk.hover()
    page.mouse.wheel(0, -300)
    expect(talk).to_contain_text("Line 60")
    place = talk.evaluate(above)
    expect(talk).to_contain_text("Line 90")
    assert talk.evaluate(above) == place
    assert talk.evaluate(below) > 300
    page.mouse.wheel(0, 100_000)
    expect(page.locator("#stop")).to_be_hidden()
    assert talk.evaluate(below) < 100
    assert watch.complaints == []


def test_closing_the_page_hangs_up(page: Page, api: ScriptedApi) -> None:
    api.held.set()
    send(page, "Say much")
    expect(page.locator("#chat .bot.message")).to_have_text("A")
    page.close()
    assert api.hung_up.wait(LEFT_SECONDS)


def test_two_people_are_answered_at_once_and_apart(page: Page, browser: Browser, ui: Ui, api: ScriptedApi) -> None:
    api.held.set()
    send(page, "The first one's")
    expect(page.locator("#chat .bot.message")).to_have_text("A")
    other = browser.new_context()
    try:
        second = opened(other, ui.url, Watch())
        send(second, "The second one's")
        expect(second.locator("#chat .bot.message")).to_have_text("A")
        api.held.clear()
        for one, text in ((page, "The first one's"), (second, "The second one's")):
            expect(one.locator("#chat .bot.message")).to_have_text("A red circle.")
            expect(one.locator("#chat .user.message")).to_have_text(text)
    finally:
        other.close()
    asked = [[message["content"] for message in question["messages"]] for question in api.requests]
    assert asked == [["The first one's"], ["The second one's"]]


def test_nothing_in_an_answer_is_fetched_or_run(page: Page, ui: Ui, api: ScriptedApi, watch: Watch) -> None:
    api.pieces = [
        "![x](http://example.invalid/x.png) ",
        '<img src="http://example.invalid/y.png" onerror="document.title=1"> ',
        "<script>document.title = 2</script>",
        "<style>@import 'http://example.invalid/z.css';</style>",
        "\n\n`<b>` and **bold**",
    ]
    send(page, "Hello")
    expect(page.locator("#chat .bot.message strong")).to_have_text("bold")
    said = page.locator("#chat .bot.message")
    expect(said).to_contain_text("![x](http://example.invalid/x.png)")
    expect(said.locator("code")).to_have_text("<b>")
    expect(said.locator("img, script, style")).to_have_count(0)
    assert page.title() == "llava-api"
    assert watch.foreign(ui.url) == []
    assert watch.complaints == []


def test_settings_reach_the_server_and_the_key_stays_out_of_the_page(
    page: Page, ui: Ui, api: ScriptedApi, watch: Watch
) -> None:
    page.get_by_role("button", name="Settings").click()
    # A page that is reloaded while it still asks for the models writes an error to the console.
    expect(page.get_by_role("combobox", name="Model")).to_have_value(MODELS[0])
    api.needed_key = "sk-secret"
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("API key").fill("sk-secret")
    page.get_by_label("API key").press("Enter")
    expect(page.get_by_role("combobox", name="Model")).to_have_value(MODELS[0])
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name=MODELS[1]).click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_role("spinbutton", name="Temperature").fill("1.3")
    page.get_by_role("spinbutton", name="Longest answer").fill("7")
    api.finish_reason = "length"
    send(page, "Hello")
    expect(page.locator("#chat .bot.message")).to_contain_text("Cut here")
    (asked,) = api.requests
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == (MODELS[1], 1.3, 7)
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    assert api.key == "sk-secret"
    assert page.get_by_label("API key").get_attribute("type") == "password"
    assert "sk-secret" not in httpx.get(ui.url).text + page.content()
    assert [text for text in watch.complaints if "401" not in text] == []


def test_a_server_that_cannot_explain_is_said_to_be_one(page: Page) -> None:
    send(page, "Hello")
    expect(page.locator("#chat .bot.message")).to_have_text("A red circle.")
    expect(page.locator("#panel")).to_contain_text("does not say what its model is shown")


def test_a_refusal_is_shown_and_can_be_tried_again(page: Page, api: ScriptedApi, watch: Watch) -> None:
    api.refusal = (400, "Too long by <b>7</b> tokens.")
    send(page, "Hello")
    expect(page.locator("#chat .bot.message")).to_have_text("⚠ Too long by <b>7</b> tokens.")
    api.refusal = None
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#chat .bot.message")).to_have_text("A red circle.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat .bot.message")).to_have_count(0)
    send(page, "Again")
    expect(page.locator("#chat .bot.message")).to_have_count(1)
    assert [message["content"] for message in api.requests[-1]["messages"]] == ["Again"]
    assert watch.complaints == []


def test_without_a_server_the_page_says_how_to_start_one(
    context: BrowserContext, watch: Watch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_ui("http://127.0.0.1:9/v1", tmp_path_factory.mktemp("ui")) as alone:
        page = opened(context, alone.url, watch)
        expect(page.get_by_role("alert")).to_contain_text("llava-api serve")
        send(page, "Hello")
        expect(page.get_by_role("textbox", name="Your message")).to_have_value("Hello")
        expect(page.get_by_role("alert")).to_contain_text("No server answers at http://127.0.0.1:9/v1")
        assert watch.complaints == []


# What a program may ask of the page


def join(ui: Ui, path: str) -> httpx.Response:
    """Send a question as the page does, with any path as its file."""
    config = json.loads(httpx.get(f"{ui.url}config").text)
    submit = next(each for each in config["dependencies"] if each["targets"][0][1] == "submit")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {
        "data": [{"text": "What is it?", "files": [file]}, MODELS[0], 0.2, 16, "", ""],
        "fn_index": submit["id"],
        "session_hash": "aprogram",
    }
    return httpx.post(f"{ui.url}gradio_api/queue/join", json=body)


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/secret", "../../etc/passwd"])
def test_no_file_of_the_machine_and_no_address_can_be_named(ui: Ui, api: ScriptedApi, path: str) -> None:
    reply = join(ui, path)
    assert reply.status_code == 403
    assert "root:" not in reply.text
    assert api.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=http://127.0.0.1:9/x",
        "gradio_api/proxy=http://127.0.0.1:9/x",
        "gradio_api/info",
        "gradio_api/openapi.json",
        "gradio_api/deep_link",
        "docs",
        "monitoring",
        "gradio_api/run/ask",
    ],
)
def test_what_the_page_does_not_need_is_not_there(ui: Ui, path: str) -> None:
    assert httpx.get(f"{ui.url}{path}").status_code == 404


def test_a_key_is_not_in_the_log_of_a_call_that_fails(api: ScriptedApi, tmp_path: Path) -> None:
    """As from a page that stayed open during an update."""
    with running_ui(api.base_url, tmp_path, quiet=False) as ui:
        config = json.loads(httpx.get(f"{ui.url}config").text)
        submit = next(each for each in config["dependencies"] if each["targets"][0][1] == "submit")
        message = {"text": "What is it?", "files": []}
        for values in (
            [message, "sk-a-secret-key"],
            [message, MODELS[0], {"sk-a-secret-key": 1}, 16, "", ["sk-a-secret-key"]],
        ):
            body = {"data": values, "fn_index": submit["id"], "session_hash": "aprogram"}
            assert httpx.post(f"{ui.url}gradio_api/queue/join", json=body).status_code == 200
        wait_until(lambda: "belong" in ui.log.read_text(), 20)
    assert "sk-a-secret-key" not in ui.log.read_text()


def test_strange_pages_and_names_are_refused(ui: Ui) -> None:
    assert httpx.get(ui.url, headers={"Host": "attacker.example.com"}).status_code == 403
    strange = httpx.post(f"{ui.url}gradio_api/queue/join", json={}, headers={"Origin": "http://attacker.example.com"})
    assert strange.status_code == 403


def test_uploads_are_limited(ui: Ui) -> None:
    large = httpx.post(f"{ui.url}gradio_api/upload", files={"files": ("x.png", b"0" * 20_000_001, "image/png")})
    assert (large.status_code, large.text) == (413, "The file is larger than 20.0 MB.")
    html = httpx.post(f"{ui.url}gradio_api/upload", files={"files": ("x.html", b"<script>", "text/html")})
    (path,) = html.json()
    back = httpx.get(f"{ui.url}gradio_api/file={path}")
    assert (back.content, back.headers["content-type"]) == (b"<script>", "application/octet-stream")
    assert back.headers["x-content-type-options"] == "nosniff"


def test_leaving_during_an_upload_leaves_nothing(ui: Ui) -> None:
    """The fixture checks that it leaves no message in the log either."""

    def half() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"0" * 1000
        raise ConnectionAbortedError

    before = ui.files()
    with pytest.raises(ConnectionAbortedError):
        httpx.post(
            f"{ui.url}gradio_api/upload", content=half(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
    assert httpx.get(ui.url).status_code == 200
    assert ui.files() == before
