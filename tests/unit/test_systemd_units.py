"""The units of packaging/systemd: what they start is there, and systemd itself reads them without a warning."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.cli.main import build_parser
from llava_api.cli.notify import notify
from llava_api.settings import Settings

FOLDER = Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
MODEL = {"LLAVA_MODEL": "llava-tiny-1.5"}


def values(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def test_there_are_units() -> None:
    assert [unit.name for unit in UNITS] == ["llava-api-fleet.service", "llava-api.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_is_started_and_set_is_there(unit: Path) -> None:
    (command,) = values(unit, "ExecStart")
    words = [MODEL.get(word.strip("${}"), word) for word in shlex.split(command)]
    assert Path(words[0]).name == "llava-api"
    build_parser().parse_args(words[1:])
    variables = dict(pair.split("=", 1) for line in values(unit, "Environment") for pair in line.split())
    settings = {name.removeprefix("LLAVA_").lower() for name in variables if name.startswith("LLAVA_")}
    assert settings <= {*Settings.model_fields, "model"}
    # Of a user without a home.
    assert {"HOME", "HF_HOME", "XDG_CACHE_HOME"} <= variables.keys()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_network_is_waited_for_and_the_drain_too(unit: Path) -> None:
    assert values(unit, "Wants") == values(unit, "After") == ["network-online.target"]
    assert int(values(unit, "TimeoutStopSec")[0]) > Settings().drain_timeout_seconds + 15
    assert values(unit, "Type") == ["notify"]


def test_both_may_do_the_same() -> None:
    hardening = [unit.read_text().partition("# What it may do")[2] for unit in UNITS]
    assert hardening[0] == hardening[1]
    assert "ProtectSystem=strict" in hardening[0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_reads_them(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # It looks for the program.
    copy.write_text(unit.read_text().replace("/opt/llava-api/.venv/bin/llava-api", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_message_reaches_the_service_manager(
    is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if is_abstract else name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    # A manager that has gone is no reason to fail.
    notify("STOPPING=1")
