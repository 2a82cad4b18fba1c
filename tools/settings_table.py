"""Write the table of settings in docs/settings.md from the code; ``--check`` fails if it is stale."""

from llava_api.settings import Settings
from tools.docs_page import DOCS, write


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


def main() -> None:
    write(DOCS / "settings.md", "settings", table(), "tools.settings_table")


if __name__ == "__main__":
    main()
