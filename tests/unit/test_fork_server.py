"""The process that vLLM's processes are forked from; a small module in place of vLLM."""

import re
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

START = """
from pathlib import Path
from llava_api.engine import fork_server
fork_server.PRELOADED = "json"
fork_server.start()
print(Path(f"/proc/{fork_server.process_id()}/status").read_text())
fork_server.stop()
"""
WORKER = """
import os, signal, time
from llava_api.engine import fork_server
fork_server.PRELOADED = "json"
fork_server.start()
worker = fork_server.Context().Process(target=time.sleep, args=(60,))
worker.ends_with = None
worker.start()
time.sleep(1)
os.kill(fork_server.process_id(), signal.SIGKILL)
print(worker.pid)
"""


def test_a_worker_ends_with_the_fork_server_while_it_loads() -> None:
    """EngineCore, which starts it, does not know the fork server's process id."""
    made = subprocess.run([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(made.stdout)).wait(5)


def test_ctrl_c_does_not_reach_the_engine() -> None:
    """A terminal sends it to all of them, and open requests would end. In a new process no resource tracker runs."""
    status = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True).stdout
    blocked = re.search(r"SigBlk:\s*(\w+)", status)
    assert blocked is not None
    assert int(blocked[1], 16) >> (signal.SIGINT - 1) & 1
