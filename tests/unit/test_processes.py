"""The end of the processes that a server has started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.engine.vllm_options import prepare_environment
from llava_api.settings import Settings

KILLED = """
import multiprocessing, time
from llava_api.engine.processes import kill_children

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    kill_children()
    child.join(10)
    print(child.exitcode)
"""


def test_a_process_that_has_only_begun_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment of vLLM's processes, whose command lines name Python's resource tracker, which may stay."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"})
    prepare_environment(Settings(), on_cpu=True)
    (tmp_path / "server.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "server.py")], env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "-9", done.stderr
