"""``llava-api ui`` in Debian's Chromium, without a screen."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 90
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
UI_PYTHON = Path(os.environ.get("LLAVA_TEST_UI_PYTHON") or ROOT / ".venv-ui" / "bin" / "python")
REQUIRED = os.environ.get("LLAVA_TEST_BROWSER") == "required"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str:
    """What the tests here need and do not find; empty if nothing is missing."""
    if CHROMIUM is None:
        return "Chromium is not installed: apt-get install chromium"
    if not UI_PYTHON.exists():
        return f"{UI_PYTHON} is not there: python3 tools/setup_venv.py --ui"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    if reason and REQUIRED:
        pytest.exit(f"LLAVA_TEST_BROWSER=required, but {reason}", returncode=1)
    for item in items:
        if reason and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True, slots=True)
class Ui:
    url: str
    folder: Path
    """In which it makes its folder for uploads."""
    pid: int
    log: Path
    """Its output."""

    def files(self) -> list[Path]:
        """The uploaded files on the disk."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@contextmanager
def running_ui(base_url: str, folder: Path, *flags: str, quiet: bool = True) -> Iterator[Ui]:
    """Run the page for an API. At its end it must leave no file, and if ``quiet`` no message in its log."""
    temporary = folder / "tmp"
    temporary.mkdir()
    log = folder / "ui.txt"
    command = [str(UI_PYTHON), "-m", "llava_api", "ui", "--base-url", base_url, "--port", "0", *flags]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT / "src")}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        yield Ui(wait_for_link(process, log), temporary, process.pid, log)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert list(temporary.iterdir()) == []
        assert not quiet or len(log.read_text().splitlines()) == 1, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for_link(process: "subprocess.Popen[bytes]", log: Path) -> str:
    def found() -> str | None:
        words = log.read_text(errors="replace").split()
        return words[words.index("page:") + 1] if "page:" in words and words[-1].endswith(")") else None

    wait_until(lambda: found() or process.poll() is not None, START_SECONDS)
    link = found()
    assert link is not None, f"the page did not start:\n{log.read_text(errors='replace')[-3000:]}"
    return link


@dataclass(slots=True)
class Watch:
    """Records a page's requests, errors and warnings."""

    complaints: list[str] = field(default_factory=list)
    """Errors and warnings in the browser's console, errors of scripts, failed requests."""
    requests: list[Request] = field(default_factory=list)

    def over(self, page: Page) -> None:
        page.on("console", lambda message: self.heard(message.type, message.text))
        page.on("pageerror", lambda error: self.heard("error", str(error)))
        page.on("request", lambda request: self.requests.append(request))
        page.on("response", lambda got: self.heard("error", f"{got.status} {got.url}") if got.status >= 400 else None)

    def heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def foreign(self, url: str) -> list[str]:
        """Addresses of requests to other origins than the page's own."""
        own = ("data:", "blob:", url)
        return [request.url for request in self.requests if not request.url.startswith(own)]


# Not for the whole session: Playwright runs an event loop in this thread, so that no other test could have one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


def opened(context: BrowserContext, url: str, watch: Watch) -> Page:
    """Open a page and wait until it can be used."""
    page = context.new_page()
    watch.over(page)
    page.goto(url)
    page.locator("#box textarea").wait_for()
    return page
