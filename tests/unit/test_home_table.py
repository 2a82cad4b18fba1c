"""docs/home.md says what ``serve`` would choose on machines of several sizes."""

from tools.home_table import PAGE, with_table


def test_the_table_of_what_fits_is_the_plans() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run .venv/bin/python -m tools.home_table"
