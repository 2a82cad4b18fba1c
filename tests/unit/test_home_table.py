"""docs/home.md says what ``serve`` would choose on machines of several sizes."""

from tools.docs_page import DOCS, with_content
from tools.home_table import table


def test_the_table_of_what_fits_is_the_plans() -> None:
    page = (DOCS / "home.md").read_text(encoding="utf-8")
    assert with_content(page, "memory", table()) == page, "run .venv/bin/python -m tools.home_table"
