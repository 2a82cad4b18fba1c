"""``llava-api route`` as a process, before servers that are processes of their own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava_api.cli.main import main
from tests.support.metrics_page import read_page
from tests.support.scripted_server import scripted_server
from tests.support.serve import END_SECONDS, Server
from tests.support.waiting import wait_until

KEY = "sk-a-key-of-this-test-1234"
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "What is it?"}]}


@contextmanager
def started_router(log: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "llava_api", "route", "--port", "0", *flags]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT) as process:
        try:
            yield Server("", process, log)
        finally:
            process.kill()


@contextmanager
def routed(tmp_path: Path, replicas: int, pause_seconds: float) -> Iterator[tuple[Server, list[int], httpx.Client]]:
    """A router with a key and a second port, the process ids of its servers, and a client."""
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    with ExitStack() as at_end:
        servers = [
            at_end.enter_context(scripted_server(tmp_path / f"{number}", pause_seconds, api_key=[f"ann={KEY}"]))
            for number in range(replicas)
        ]
        backends = [f"--backend=http://127.0.0.1:{port}" for port, _ in servers]
        flags = [*backends, f"--backend-key-file={key_file}", f"--api-key=ann={KEY}", "--metrics-port=0"]
        router = at_end.enter_context(started_router(tmp_path / "route.log", *flags))
        router.wait_for("\ncurl ", END_SECONDS)
        headers = {"authorization": f"Bearer {KEY}"}
        client = at_end.enter_context(httpx.Client(base_url=router.base_url, headers=headers, timeout=30))
        yield router, [process for _, process in servers], client


def side_page(router: Server) -> str:
    address = router.terminal.partition("without a key: ")[2].split()[0]
    return httpx.get(address).text


def test_a_router_answers_and_drains(tmp_path: Path) -> None:
    with routed(tmp_path, 1, pause_seconds=0.3) as (router, _, client):
        assert client.post("/chat/completions", json=ASKED, headers={"authorization": "x"}).status_code == 401
        with client.stream("POST", "/chat/completions", json=ASKED | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            router.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping: 1 open requests" in router.terminal)
            refused = httpx.post(f"{router.base_url}/chat/completions", json=ASKED, headers=client.headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            page = read_page(side_page(router))
            assert page.value("llava_api_router_requests_in_progress") == 1
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert router.process.wait(END_SECONDS) == 0


def test_a_killed_server_costs_no_answer(tmp_path: Path) -> None:
    with routed(tmp_path, 2, pause_seconds=0.2) as (router, processes, client):
        statuses: list[int] = []

        def ask(number: int) -> None:
            body = ASKED | {"messages": [{"role": "user", "content": f"Question {number}"}]}
            statuses.append(client.post("/chat/completions", json=body).status_code)

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in asking:
            thread.start()
        wait_until(lambda: "llava_api_router_requests_in_progress 12.0" in side_page(router))
        os.kill(processes[0], signal.SIGKILL)
        for thread in asking:
            thread.join()
        assert statuses == [200] * 12
        page = read_page(side_page(router))
        assert (page.value("llava_api_router_retries_total", model="tiny") or 0) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "gpu1:8000"], "write it as http://HOST:PORT"),
        (["--backend", "http://gpu1:99999"], "write it as http://HOST:PORT"),
        (["--backend", "http://gpu1:0"], "write it as http://HOST:PORT"),
        (["--backend", "http://127.0.0.1:9", "--backend-key-file", "/no/such"], "/no/such"),
        (["--backend", "http://127.0.0.1:9", "--host", "0.0.0.0"], "--allow-anonymous"),
    ],
)
def test_a_start_that_fails_says_why(flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("llava_api.cli.route.set_up_logging", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main(["route", *flags])
    assert words in str(ended.value)
