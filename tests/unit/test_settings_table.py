"""The documentation's table of settings is the code's, and the command line takes every flag in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.cli.main import build_parser
from llava_api.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
ROW = re.compile(r"^\| `(--[a-z0-9-]+)` \| `(LLAVA_[A-Z0-9_]+)` \|")
VALUES = {
    "--port": "8001",
    "--log-level": "debug",
    "--gpu-memory-utilization": "0.5",
    "--distributed-executor-backend": "ray",
    "--image-mode": "pad",
    "--jpeg-decode": "exact",
    "--docs": "open",
    "--log-format": "json",
    "--metrics": "open",
    "--unix-socket-mode": "600",
    "--root-path": "/llava",
    "--trusted-proxies": "10.1.0.0/16",
}
"""A value that fits, for flags that do not take every number."""


def documented_rows() -> list[tuple[str, str]]:
    """(flag, environment variable) of each row between the page's markers."""
    page = PAGE.read_text(encoding="utf-8")
    table = page.split("<!-- settings:start -->")[1].split("<!-- settings:end -->")[0]
    return [match.groups() for line in table.splitlines() if (match := ROW.match(line))]  # type: ignore[misc]


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    """``settings_table.py --check`` as a person runs it, on the page of ``root``."""
    script = root / "tools" / "settings_table.py"
    return subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)


def test_table_is_fresh() -> None:
    checked = run_check(ROOT)
    assert checked.returncode == 0, checked.stderr


def test_stale_table_fails_with_a_hint_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = (ROOT / "tools" / "settings_table.py").read_text(encoding="utf-8")
    (tmp_path / "tools" / "settings_table.py").write_text(script, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "settings.md").write_text(page.replace("| `--port` |", "| `--harbour` |"), encoding="utf-8")
    checked = run_check(tmp_path)
    assert checked.returncode == 1
    assert len(checked.stderr.strip().splitlines()) == 1
    assert "tools/settings_table.py" in checked.stderr


def test_every_setting_has_a_row_and_a_description() -> None:
    assert [variable.removeprefix("LLAVA_").lower() for _, variable in documented_rows()] == list(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("flag", [flag for flag, _ in documented_rows()])
def test_every_flag_in_the_table_is_accepted(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    is_switch = "bool" in str(Settings.model_fields[name].annotation)
    chosen = build_parser().parse_args(["serve", flag, *([] if is_switch else [VALUES.get(flag, "1")])])
    assert getattr(chosen, name) not in (None, [])
