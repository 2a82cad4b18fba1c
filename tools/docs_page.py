"""The part of a documentation page that is generated: between <!-- NAME:start --> and <!-- NAME:end -->."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def with_content(page: str, name: str, content: str) -> str:
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, rest = page.split(start, 1)
    return f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def write(page: Path, name: str, content: str, command: str) -> None:
    """Write the page anew. With ``--check`` on the command line, exit with an error instead if it is stale."""
    current = page.read_text(encoding="utf-8")
    fresh = with_content(current, name, content)
    if "--check" not in sys.argv[1:]:
        page.write_text(fresh, encoding="utf-8")
    elif fresh != current:
        sys.exit(f"docs/{page.name} is stale: run .venv/bin/python -m {command}")
