"""Write the README's table of settings from the code; ``--check`` fails where it is stale."""

import sys
from pathlib import Path

from llava_api.settings import Settings

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- settings:start -->", "<!-- settings:end -->"


def shown(default: object) -> str:
    if default is None or default == []:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table() -> str:
    """One row a setting: flag, environment variable, default, what it does."""
    rows = ["| flag | environment | default | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{flag}` | `LLAVA_{name.upper()}` | {shown(field.get_default())} | {text} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """The README's text with a fresh table between the markers."""
    before, rest = readme.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> None:
    current = README.read_text()
    fresh = with_table(current)
    if "--check" in sys.argv[1:]:
        if fresh != current:
            sys.exit("README.md's table of settings is stale: run .venv/bin/python tools/settings_table.py")
        return
    README.write_text(fresh)


if __name__ == "__main__":
    main()
