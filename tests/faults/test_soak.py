"""A minute of twice what the server can take (``make soak`` is the long form)."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_under_twice_its_load_nothing_is_lost_and_nothing_grows(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    # It loads every core that it gets: the tests beside it come first.
    command = ["nice", "-n", "5", sys.executable, "-m", "benchmarks.soak", "--minutes", "1", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(result.read_text())
    assert not found["faults"], found
    assert found["asked again after a 503"] > 0
    assert found["requests"]["cut in answer"] > 0
