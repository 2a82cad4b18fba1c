"""The servers: how each is started, when it counts as started, and how it is stopped."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workloads import MODEL

START_LIMIT_SECONDS = 600.0
STOP_LIMIT_SECONDS = 30.0
IMAGES_A_REQUEST = 16
CONTEXT = 2048
SEQUENCES = 128
BATCHED_TOKENS = 2048
"""These two are vLLM's own defaults for its server on a CPU, written out so that both servers have them."""
PRCTL = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
"""For every server."""
PEER_ENVIRONMENT = {
    # vLLM's server as it is installed by itself: our plugin would be loaded by it too, to no use.
    "VLLM_PLUGINS": "",
}


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    name: str
    command: Callable[[Path, int], list[str]]
    """(checkpoint folder, port) -> command line"""
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that has answered once."""

    port: int
    process: int
    start_seconds: float
    """From starting the process to its first answer, or until it was ready."""
    log: Path


def our_command(folder: Path, port: int, extra: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, "-m", "llava_api", "serve", str(folder), "--served-model-name", MODEL]
    command += ["--port", str(port), "--log-level", "warning", "--dtype", "float32", "--enforce-eager", "--seed", "0"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES)]
    command += ["--engine-arg", f"max_num_batched_tokens={BATCHED_TOKENS}"]
    return [*command, "--max-images-per-request", str(IMAGES_A_REQUEST), *extra]


def peer_command(folder: Path, port: int) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--seed", "0"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES)]
    command += ["--max-num-batched-tokens", str(BATCHED_TOKENS)]
    command += ["--limit-mm-per-prompt", json.dumps({"image": IMAGES_A_REQUEST})]
    # What it would only lose by: ours writes no such lines either. The statistics ours keeps all the same.
    return [*command, "--disable-log-stats", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]


OURS = Contestant("ours", our_command, {})
PEER = Contestant("peer", peer_command, PEER_ENVIRONMENT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_answer(port: int, server: "subprocess.Popen[bytes]", started: float, limit_seconds: float) -> float:
    """Seconds from ``started`` until a chat request was answered. Raises RuntimeError."""
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    while (left := started + limit_seconds - time.monotonic()) > 0 and server.poll() is None:
        asked = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=min(60, left)) as reply:
                reply.read()
                return time.monotonic() - started
        except urllib.error.HTTPError as error:
            if error.code == 503:  # It listens, and loads.
                error.close()
                time.sleep(0.05)
                continue
            raise RuntimeError(f"the first answer was {error.code}: {error.read().decode()}") from error
        except OSError:  # Nobody listens yet.
            time.sleep(0.05)
    raise RuntimeError("the server ended" if server.poll() is not None else "the server did not start in time")


def until_ready(port: int, server: "subprocess.Popen[bytes]", started: float, limit_seconds: float) -> float:
    """Seconds from ``started`` until the server says that it is ready. Raises RuntimeError."""
    while time.monotonic() - started < limit_seconds and server.poll() is None:
        # It listens before it is ready, or it does not.
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return time.monotonic() - started
        time.sleep(0.1)
    raise RuntimeError("the server ended" if server.poll() is not None else "the server did not start in time")


def die_with_parent() -> None:
    """Ask Linux to end this process when the benchmark is killed: no server may be left behind (prctl(2))."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def serving(
    contestant: Contestant,
    folder: Path,
    scratch: Path,
    limit_seconds: float = START_LIMIT_SECONDS,
    *,
    ready: Callable[[int, "subprocess.Popen[bytes]", float, float], float] = first_answer,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Iterator[Server]:
    """Start a server and wait until it is ``ready``; at the end its whole process group is gone."""
    port = free_port()
    log = scratch / f"{contestant.name.replace(' ', '-')}-{port}.log"
    variables = {**os.environ, **environment, **contestant.environment}
    started = time.monotonic()
    with log.open("wb") as out:
        # A session of its own: its group is ended as a whole, and Ctrl-C reaches it through us alone.
        server = subprocess.Popen(
            contestant.command(folder, port),
            stdout=out,
            stderr=out,
            env=variables,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield Server(port, server.pid, ready(port, server, started, limit_seconds), log)
    except Exception as error:
        error.add_note(f"end of the log of {contestant.name}:\n{log.read_text(errors='replace')[-4000:]}")
        raise
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_LIMIT_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
