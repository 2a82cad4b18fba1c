"""The documentation's table of settings is the code's, and the command line takes every flag in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from annotated_types import Ge

from llava_api.cli.flags import plain_type, read_settings
from llava_api.cli.main import build_parser
from llava_api.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
ROW = re.compile(r"^\| `(--[a-z0-9-]+)` \| `(LLAVA_[A-Z0-9_]+)` \|")


def documented_rows() -> list[tuple[str, str]]:
    """(flag, environment variable) of each row between the page's markers."""
    page = PAGE.read_text(encoding="utf-8")
    table = page.split("<!-- settings:start -->")[1].split("<!-- settings:end -->")[0]
    return [match.groups() for line in table.splitlines() if (match := ROW.match(line))]  # type: ignore[misc]


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    """``tools.settings_table --check`` as a person runs it, on the page of ``root``."""
    command = [sys.executable, "-m", "tools.settings_table", "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)


def test_table_is_fresh() -> None:
    checked = run_check(ROOT)
    assert checked.returncode == 0, checked.stderr


def test_stale_table_fails_with_a_hint_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("settings_table.py", "docs_page.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools")
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "settings.md").write_text(page.replace("| `--port` |", "| `--harbour` |"), encoding="utf-8")
    checked = run_check(tmp_path)
    assert checked.returncode == 1
    assert len(checked.stderr.strip().splitlines()) == 1
    assert "tools.settings_table" in checked.stderr


def test_every_setting_has_a_row_and_a_description() -> None:
    assert [variable.removeprefix("LLAVA_").lower() for _, variable in documented_rows()] == list(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


def valid_value(name: str) -> str:
    """A value that the setting accepts: its example, another choice than the default, or a small number."""
    field = Settings.model_fields[name]
    if field.examples:
        return str(field.examples[0])
    kind = plain_type(field.annotation)
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != field.default)
    return str(max([1, *(bound.ge for bound in field.metadata if isinstance(bound, Ge))]))


@pytest.mark.parametrize("flag", [flag for flag, _ in documented_rows()])
def test_every_flag_in_the_table_is_accepted(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    is_switch = plain_type(Settings.model_fields[name].annotation) is bool
    chosen = build_parser().parse_args(["serve", flag, *([] if is_switch else [valid_value(name)])])
    assert getattr(chosen, name) not in (None, [])
    assert getattr(read_settings(chosen), name) not in (None, [], "")
