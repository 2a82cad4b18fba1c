"""tools/demo.py with small programs in the place of server and page."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tools import demo

READY = "print('Base URL: http://127.0.0.1:1/v1', flush=True)"
LINK = "print('The page: http://127.0.0.1:2/ (asks)', flush=True)"
FOREVER = "import time; time.sleep(60)"


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.mark.parametrize(
    ("server", "page", "code"),
    [
        (["import sys; sys.exit(3)"], [FOREVER], 3),
        ([READY, "import sys, time; time.sleep(1); sys.exit(4)"], [LINK, FOREVER], 4),
        ([READY, FOREVER], [LINK], 1),
        ([READY, FOREVER], [LINK, "import os; os.kill(os.getpid(), 9)"], 1),
    ],
    ids=["the server does not start", "the server dies", "the page ends", "the page is killed"],
)
def test_both_end_when_either_does(server: list[str], page: list[str], code: int) -> None:
    children: list[demo.Child] = []
    try:
        assert demo.run(program(*server), program(*page), children) == code
    finally:
        for child in reversed(children):
            child.end()
    assert all(child.process.poll() is not None for child in children)


def test_ctrl_c_ends_both_with_success(tmp_path: Path) -> None:
    server, page = tmp_path / "server", tmp_path / "page"
    for path, line in ((server, READY), (page, LINK)):
        path.write_text(f"#!{sys.executable}\nimport os\n{line}\nprint('pid', os.getpid(), flush=True)\n{FOREVER}\n")
        path.chmod(0o755)
    script = (
        f"import sys, pathlib, demo\ndemo.SERVER_PYTHON = pathlib.Path({str(server)!r})\n"
        f"demo.UI_PYTHON = pathlib.Path({str(page)!r})\nsys.argv = ['demo']\nsys.exit(demo.main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(demo.__file__).parent)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        said: list[str] = []
        while not ("Open http://127.0.0.1:2/" in "".join(said) and "".join(said).count("pid") == 2):
            said.append(running.stdout.readline())
            assert said[-1], said
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    pids = [int(line.split()[1]) for line in said if line.startswith("pid")]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
