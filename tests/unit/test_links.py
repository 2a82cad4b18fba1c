"""The project's pages: the files and headings that they link to are there, and so are the files that they name."""

import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "docs/*.md", "helm/*/*.md", "src/llava_api/demo/**/*.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))
LINK = re.compile(r"""(?:\]\(|src=")([^)"\s]+)[)"]""")
NAMED_FILE = re.compile(r"(?<![\w./-])(?:src|tests|tools|training|benchmarks|docs|helm|constraints)/[\w./-]+\.\w+")


@lru_cache
def prose(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@lru_cache
def anchors(page: Path) -> frozenset[str]:
    """Of its headings, as GitHub and GitLab make them: the second of a name gets -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        shown = LINK.sub("]", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
        found.append(name)
        earlier = found.count(name) - 1
        if earlier:
            found.append(f"{name}-{earlier}")
    return frozenset(found)


def is_there(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if not is_there(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    named = set(NAMED_FILE.findall(page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_a_dead_link_is_found() -> None:
    page = ROOT / "docs" / "api.md"
    assert is_there(page, "images.md#detail")
    assert is_there(page, "#post-v1chatcompletions")
    for dead in ("images.md#details", "image.md", "#no-such-heading", "../../outside.md", "../LICENSE#terms"):
        assert not is_there(page, dead), dead
