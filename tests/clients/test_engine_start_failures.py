"""The engine itself does not start: the line says why, in the words of the process that knows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

START_SECONDS = 150


def children(pid: int) -> Iterator[int]:
    """Every process below ``pid``."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from children(child)


def is_worker(pid: int) -> bool:
    try:
        return b"VLLM::Worker" in Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return False


def serve(log: Path, *flags: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "llava_api", "serve", "llava-tiny-1.5", "--port", "0", *flags]
    with log.open("wb") as sink:
        return subprocess.Popen(command, stdout=sink, stderr=sink)


def told(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The last line; there must be no other that explains."""
    try:
        assert process.wait(START_SECONDS) == 1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    text = log.read_text(errors="replace")
    assert "Traceback" not in text
    assert "root cause" not in text
    return text.splitlines()[-1]


def test_a_kv_cache_that_is_too_small_for_the_context(tmp_path: Path) -> None:
    log = tmp_path / "terminal.txt"
    line = told(serve(log, "--engine-arg", "num_gpu_blocks_override=4"), log)
    assert line.startswith("llava-api: the engine could not load the checkpoint: To serve at least one request")
    assert "max_model_len" in line


def test_a_worker_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    """As the kernel does it when memory runs out: it takes the largest process."""
    log = tmp_path / "terminal.txt"
    process = serve(log)
    deadline = time.monotonic() + START_SECONDS
    workers: list[int] = []
    while not workers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        with suppress(OSError):
            workers = [child for child in children(process.pid) if is_worker(child)]
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    line = told(process, log)
    assert line.startswith("llava-api: the engine could not load the checkpoint: a process of the engine ended without")
    assert "memory" in line
