"""Write the table of settings in docs/settings.md from the code; ``--check`` fails if it is stale."""

import sys
from pathlib import Path

from llava_api.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
START, END = "<!-- settings:start -->", "<!-- settings:end -->"


def shown(default: object) -> str:
    if default is None or default == []:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table() -> str:
    """One row for each setting: flag, environment variable, default, what it does."""
    rows = ["| flag | environment | default | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{flag}` | `LLAVA_{name.upper()}` | {shown(field.get_default())} | {text} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with a new table between the markers."""
    before, rest = page.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> None:
    current = PAGE.read_text()
    fresh = with_table(current)
    if "--check" in sys.argv[1:]:
        if fresh != current:
            sys.exit("docs/settings.md is stale: run .venv/bin/python tools/settings_table.py")
        return
    PAGE.write_text(fresh)


if __name__ == "__main__":
    main()
