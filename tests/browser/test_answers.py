"""The page with the real server and the demo checkpoint: right answers, and what the model saw of the images."""

import base64
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.browser.conftest import ROOT, Ui, Watch, opened, running_ui
from tests.support.serve import Server
from tests.support.waiting import wait_until
from training.conversations import description
from training.drawings import Drawing, encode, new_drawing

MODEL = "llava-tiny-1.5"
MAX_PIXELS = 500_000
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def server(demo_server: Callable[[str], Server]) -> Server:
    return demo_server(MODEL)


@pytest.fixture(scope="module")
def ui(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    limits = ("--max-image-pixels", str(MAX_PIXELS), "--max-image-bytes", "1000000")
    with running_ui(server.base_url, tmp_path_factory.mktemp("ui"), *limits) as running:
        yield running


@pytest.fixture
def page(context: BrowserContext, ui: Ui, watch: Watch) -> Page:
    return opened(context, ui.url, watch)


def drawn(seed: int, size: tuple[int, int] = (320, 240)) -> Drawing:
    return new_drawing(Random(f"the page {seed}"), size, number=False)


def add(page: Page, *files: tuple[str, bytes]) -> None:
    """As with the file dialogue."""
    before = page.locator("#box .thumbnail-item").count()
    chosen: list[Any] = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.locator("#box input[type=file]").set_input_files(chosen)
    expect(page.locator("#box .thumbnail-item")).to_have_count(before + len(files))


def send(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(text)
    page.get_by_role("textbox", name="Your message").press("Enter")


def answers(page: Page) -> Locator:
    return page.locator("#chat .bot.message")


def test_a_drawn_image_is_described_and_a_second_question_knows_it(
    page: Page, ui: Ui, watch: Watch, server: Server
) -> None:
    image = drawn(1)
    png = encode(image.image, "PNG")
    add(page, ("shapes.png", png))
    assert len(ui.files()) == 1
    send(page, "What is in this image?")
    expect(answers(page)).to_have_text([description(image)])
    expect(page.locator("#chat .sent img")).to_have_count(1)
    expect(page.locator("#stop")).to_be_hidden()
    kind = image.shapes[0].kind
    send(page, f"Is there a {kind}?")
    expect(answers(page)).to_have_text([description(image), "Yes."])
    # The file was deleted when it became a part of the conversation, and there is no copy.
    assert ui.files() == []
    panel_says_the_same(
        page, explained(server, png, "What is in this image?", description(image), f"Is there a {kind}?")
    )
    assert watch.complaints == []
    assert watch.foreign(ui.url) == []


def explained(server: Server, png: bytes, *said: str) -> dict[str, Any]:
    """What the server itself says about the same conversation."""
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)
    ]
    messages[0]["content"] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": said[0]}]
    reply = httpx.post(f"{server.base_url}/explain", json={"model": server.model, "messages": messages}, timeout=30)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def panel_says_the_same(page: Page, told: dict[str, Any]) -> None:
    rows = {
        "Text": told["text_tokens"],
        "Image 1": told["images"][0]["image_tokens"],
        "Prompt, all together": told["prompt_tokens"],
        "Left for the answer": told["context_left"],
        "Longest prompt with answer": told["context_length"],
    }
    expect(page.locator("#panel tr")).to_have_text([f"{name}{count:,}" for name, count in rows.items()])
    drawing = page.get_by_role("img", name="Image 1 in its tiles")
    side = told["images"][0]["pixels_shape"][-1]
    assert drawing.get_attribute("viewBox") == f"0 0 {side} {side}"
    place = drawing.locator("image")
    # 320 x 240 in a square: a quarter of it is padding, half above and half below.
    assert [float(place.get_attribute(name) or "nan") for name in ("x", "y", "width", "height")] == [
        0,
        side / 8,
        side,
        side * 3 / 4,
    ]


def test_images_are_pasted_and_dropped(page: Page, ui: Ui, watch: Watch) -> None:
    files = [base64.b64encode(encode(drawn(seed).image, "PNG")).decode() for seed in (2, 3)]
    for data, event in zip(files, ("paste", "drop"), strict=True):
        page.locator("#box textarea").evaluate(
            """(element, [data, kind]) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const carried = new DataTransfer();
                carried.items.add(new File([bytes], "picture.png", { type: "image/png" }));
                const options = { bubbles: true, cancelable: true };
                element.dispatchEvent(kind === "paste"
                    ? new ClipboardEvent("paste", { ...options, clipboardData: carried })
                    : new DragEvent("drop", { ...options, dataTransfer: carried }));
            }""",
            [data, event],
        )
        expect(page.locator("#box .thumbnail-item")).to_have_count(1 if event == "paste" else 2)
    send(page, "How many shapes are there?")
    expect(page.locator("#chat .sent img")).to_have_count(2)
    expect(page.locator("#panel figcaption")).to_have_count(2)
    expect(page.locator("#panel tr").nth(2)).to_have_text("Image 264")
    assert ui.files() == []
    assert watch.complaints == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"this is no picture", "The image cannot be read, or a part of it is missing"),
        (b"%PDF-1.7", "This is a PDF file, which the server does not take"),
        (encode(drawn(4, (1000, 501)).image, "PNG"), f"more than the {MAX_PIXELS} pixels"),
    ],
    ids=["broken", "PDF", "too many pixels"],
)
def test_an_image_that_is_refused_is_reported_and_the_question_stays(page: Page, data: bytes, message: str) -> None:
    add(page, ("bad.png", data))
    send(page, "What is in this image?")
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("What is in this image?")
    expect(answers(page)).to_have_count(0)


def test_a_file_too_large_is_reported_before_it_is_sent(page: Page, ui: Ui) -> None:
    page.locator("#box input[type=file]").set_input_files(
        [{"name": "large.png", "mimeType": "image/png", "buffer": b"0" * 1_000_001}]
    )
    expect(page.get_by_text("maximum allowed size")).to_be_visible()
    assert not any(path.stat().st_size > 1_000_000 for path in ui.files())


def test_a_question_is_asked_again_edited_and_taken_back(page: Page, watch: Watch, server: Server) -> None:
    page.get_by_role("button", name="What is in this image?").click()
    described = "A purple circle, a red star and a green square."
    expect(answers(page)).to_have_text([described])
    expect(page.locator("#stop")).to_be_hidden()
    asked = server.terminal.count("route=/v1/chat/completions")
    page.get_by_role("button", name="Retry").click()
    # The page looks before the second answer as it does after it.
    wait_until(lambda: server.terminal.count("route=/v1/chat/completions") > asked, 20)
    expect(page.locator("#stop")).to_be_hidden()
    expect(answers(page)).to_have_text([described])
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Your question").fill("Is there a triangle?")
    page.locator("#chat").get_by_role("button", name="Submit").click()
    expect(answers(page)).to_have_text(["No."])
    expect(page.locator("#chat .user.message")).to_contain_text("Is there a triangle?")
    page.get_by_role("button", name="Undo").click()
    expect(answers(page)).to_have_count(0)
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("Is there a triangle?")
    assert watch.complaints == []


def test_with_only_the_keyboard(page: Page, watch: Watch) -> None:
    """The first example by Tab and Enter, a question of two lines, and a new conversation."""
    reached: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()")
        reached.append(name.split("\n")[0])
        if reached[-1] == "What is in this image?":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Enter")
            break
    expect(answers(page)).to_have_count(1)
    expect(answers(page)).to_contain_text("A purple circle")
    for wanted in ("Upload a file", "Your message", "Submit", "New conversation", "What the model saw", "Settings"):
        for _ in range(30):
            if reached[-1] == wanted:
                break
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()")
            reached.append(name.split("\n")[0])
        assert reached[-1] == wanted, reached
    expect(page.get_by_role("button", name="Settings", expanded=False)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Settings", expanded=True)).to_be_focused()
    expect(page.get_by_role("combobox", name="Model")).to_have_value(MODEL)
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Your message":
            break
    page.keyboard.type("Is there")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("a star?")
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("Is there\na star?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(2)
    assert watch.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_and_follows_the_systems_colours(
    context: BrowserContext, ui: Ui, watch: Watch, scheme: Any
) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    watch.over(page)
    page.goto(ui.url)
    add(page, ("wide.png", encode(drawn(5, (900, 300)).image, "PNG")))
    send(page, "What is in this image? " + "w" * 120)
    expect(page.locator("#panel figcaption")).to_have_count(1)
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (red + green + blue > 600) == (scheme == "light")
    assert watch.complaints == []


@pytest.mark.skipif(not os.environ.get("SCREENSHOTS"), reason="screenshots for docs/ are made with SCREENSHOTS=1")
@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("light", (1280, 900), "light"), ("dark", (1280, 900), "dark"), ("narrow", (360, 760), "light")],
)
def test_screenshots(
    context: BrowserContext, ui: Ui, watch: Watch, name: str, size: tuple[int, int], scheme: Any
) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    watch.over(page)
    page.goto(ui.url)
    page.get_by_role("button", name="What is in this image?").click()
    expect(page.locator("#panel figcaption")).to_have_count(1)
    send(page, "Is there a star?")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_have_text("Yes.")
    expect(page.locator("#stop")).to_be_hidden()
    page.mouse.move(0, 0)
    path = DOCS / f"ui-{name}.png"
    page.screenshot(path=path, animations="disabled", full_page=name == "narrow")
    assert path.stat().st_size < 300_000


def test_nothing_is_left_of_what_was_added_and_never_sent(page: Page, ui: Ui) -> None:
    """The fixture checks that the folder is gone when the page has ended."""
    before = ui.files()
    add(page, ("shapes.png", encode(drawn(6).image, "PNG")))
    (waiting,) = set(ui.files()) - set(before)
    folder = Path(waiting).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert waiting.stat().st_mode & 0o777 == 0o600
