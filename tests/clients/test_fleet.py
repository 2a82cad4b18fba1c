"""``llava-api fleet`` with scripted servers, as its callers and its operator meet it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from llava_api.cli.fleet import control
from llava_api.errors import StartupError
from tests.support.serve import Server, have_ended
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
FILE = """
[[models]]
name = "a"
model = "anything"
exclusive = "one of both"
[[models]]
name = "b"
model = "anything"
exclusive = "one of both"
[[models]]
name = "c"
model = "anything"
[[models]]
name = "slow"
model = "anything"
[[models]]
name = "broken"
model = "broken"
"""
SECRET = "sk-of-this-test-alone"
KEY = {"authorization": f"Bearer {SECRET}"}


def question(model: str, **others: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], **others}


class Box:
    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.sockets = folder / "run"

    def ask(self, model: str) -> httpx.Response:
        return httpx.post(f"{self.server.base_url}/chat/completions", json=question(model), headers=KEY, timeout=30)

    def states(self) -> dict[str, str]:
        listed = httpx.get(f"{self.server.base_url}/models", headers=KEY).json()["data"]
        return {card["id"]: card["status"] for card in listed}

    def process_of(self, model: str) -> psutil.Process:
        (found,) = [one for one in self.server.children() if f"--served-model-name={model}" in one.cmdline()]
        return found


@contextmanager
def fleet(folder: Path) -> Iterator[Box]:
    (folder / "models.toml").write_text(FILE)
    command = [sys.executable, "-m", "tests.support.scripted_serve", "fleet", str(folder / "models.toml")]
    command += [
        "--port",
        "0",
        "--folder",
        str(folder / "run"),
        "--api-key",
        "me=sk-of-this-test-alone",
        "--metrics",
        "open",
    ]
    (folder / "limits.toml").write_text("[you]\nrequests_per_minute = 1\n")
    command += ["--api-key", f"you={SECRET}-2", "--key-limits-file", str(folder / "limits.toml")]
    command += ["--stream-head-seconds", "0", "--stream-keep-alive-seconds", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCRIPTED_FOLDER": str(folder)}
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    box = Box(folder, Server("fleet", process, log))
    try:
        box.server.wait_for("Base URL", 30)
        yield box
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


def test_all_models_are_listed_and_the_first_request_loads_one(box: Box) -> None:
    assert set(box.states()) == {"a", "b", "c", "slow", "broken"}
    assert box.states()["c"] == "unloaded"
    assert box.ask("c").json()["choices"][0]["message"]["content"] == "I am c."
    assert box.states()["c"] == "ready"
    card = httpx.get(f"{box.server.base_url}/models/c", headers=KEY).json()
    assert card["context_length"] > 0


def test_the_door_asks_for_a_key_before_anything_is_loaded(box: Box) -> None:
    answer = httpx.post(f"{box.server.base_url}/chat/completions", json=question("a"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert box.states()["a"] == "unloaded"


def test_a_swap_under_load_loses_no_request(box: Box) -> None:
    async def keep_asking(client: httpx.AsyncClient, models: str) -> list[str]:
        said = []
        for model in models:
            answer = await client.post("/chat/completions", json=question(model))
            assert answer.status_code == 200, answer.text
            said.append(answer.json()["choices"][0]["message"]["content"])
        return said

    async def ask_all() -> list[list[str]]:
        async with httpx.AsyncClient(base_url=box.server.base_url, headers=KEY, timeout=60) as client:
            return await asyncio.gather(*[keep_asking(client, models) for models in ("ab", "ba", "ab", "ba")])

    answers = asyncio.run(ask_all())
    assert answers == [[f"I am {model}." for model in models] for models in ("ab", "ba", "ab", "ba")]
    states = box.states()
    assert sorted((states["a"], states["b"])) in (["ready", "unloaded"], ["ready", "unloading"])
    assert states["c"] == "ready"


def test_a_stream_gets_comments_while_its_model_loads(box: Box) -> None:
    with httpx.stream(
        "POST", f"{box.server.base_url}/chat/completions", json=question("slow", stream=True), headers=KEY, timeout=30
    ) as answer:
        lines = answer.iter_lines()
        assert answer.status_code == 200
        assert next(lines) == ": loading slow"
        assert box.states()["slow"] == "loading"
        (box.folder / "go").touch()
        events = [line for line in lines if line.startswith("data: ")]
    assert "I am slow" in events[1]
    assert events[-1] == "data: [DONE]"


def test_a_model_that_cannot_start_says_why_to_its_callers(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    answer = box.ask("broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert answer.json()["error"]["message"] == "The model broken could not be loaded; the server's log says why."
    assert int(answer.headers["retry-after"]) >= 1
    # Or openai's client would load it three times.
    assert answer.headers["x-should-retry"] == "false"
    control.command(box.sockets, "status", None)
    assert capsys.readouterr().err == "broken: out of memory: serve a smaller checkpoint\n"


def test_a_killed_server_is_started_again_and_takes_no_other_along(box: Box) -> None:
    box.ask("slow")
    box.ask("c")
    killed, other = box.process_of("c"), box.process_of("slow")
    killed.kill()
    assert box.ask("c").status_code == 200
    assert box.process_of("c").pid != killed.pid
    assert box.process_of("slow") == other


def test_a_request_that_had_no_byte_yet_is_answered_by_the_next_server(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_at_the_server() -> bool:
        control.command(box.sockets, "status", None)
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("c "))
        return row.split()[4] == "1"

    box.ask("c")
    killed = box.process_of("c")
    killed.suspend()
    with ThreadPoolExecutor() as callers:
        asked = callers.submit(box.ask, "c")
        wait_until(is_at_the_server)
        killed.kill()
        assert asked.result(30).json()["choices"][0]["message"]["content"] == "I am c."


def test_the_operator_sees_loads_and_unloads(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> dict[str, list[str]]:
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["MODEL", "STATE", "FOR", "REQUESTS", "WAITING", "MEMORY", "GPUS"]
        return {line.split()[0]: line.split()[1:] for line in lines[1:]}

    control.command(box.sockets, "load", "c")
    assert rows()["c"][0] == "ready"
    control.command(box.sockets, "unload", "c")
    assert rows()["c"][0] == "unloaded"
    with pytest.raises(StartupError, match="could not be loaded: out of memory"):
        control.command(box.sockets, "load", "broken")
    with pytest.raises(StartupError, match="the fleet has no model d; it has a, b, c, slow, broken"):
        control.command(box.sockets, "load", "d")
    with pytest.raises(StartupError, match="name the model"):
        control.command(box.sockets, "load", None)
    with pytest.raises(StartupError, match="no fleet runs in"):
        control.command(box.folder, "status", None)


def test_metrics_of_all_models_are_on_one_page(box: Box) -> None:
    box.ask("c")
    url = box.server.base_url.removesuffix("/v1") + "/metrics"
    page = httpx.get(url).text
    assert 'llava_api_fleet_model_state{model="c",state="ready"} 1.0' in page
    assert 'llava_api_fleet_model_state{model="broken",state="failed"} 1.0' in page
    assert 'llava_api_fleet_model_failing{model="broken"} 1.0' in page
    assert 'llava_api_fleet_model_failing{model="c"} 0.0' in page
    asked = [line for line in page.splitlines() if line.startswith("llava_api_requests_total{") and 'model="c"' in line]
    assert any('route="/v1/chat/completions"' in line and 'key="me"' in line for line in asked)
    assert page.count("# TYPE llava_api_requests_total ") == 1
    assert httpx.get(url, headers={"accept": "application/openmetrics-text"}).text.endswith("# EOF\n")


def test_each_request_is_logged_once_and_no_server_shows_its_own_address(box: Box) -> None:
    of_c, of_broken, last = (box.ask(model).headers["x-request-id"] for model in ("c", "broken", "c"))
    wait_until(lambda: last in box.server.terminal)
    lines = box.server.terminal.splitlines()
    assert [line.startswith("[c] ") for line in lines if of_c in line] == [True]
    assert [line.startswith("[c] ") for line in lines if of_broken in line] == [False]
    assert box.server.terminal.count("Base URL") == 1


def test_the_limits_of_a_key_hold_for_all_models_together_and_a_refused_request_loads_none(box: Box) -> None:
    you = {"authorization": KEY["authorization"] + "-2"}
    url = f"{box.server.base_url}/chat/completions"
    answers = [httpx.post(url, json=question("c"), headers=you, timeout=30) for _ in range(2)]
    control.command(box.sockets, "unload", "c")
    control.command(box.sockets, "load", "a")
    for model in ("c", "a", "c"):
        answers.append(httpx.post(url, json=question(model), headers=you, timeout=30))
        assert box.states()["c"] == "unloaded"
    assert {answer.status_code for answer in answers[1:]} == {429}
    assert answers[0].status_code == 200
    assert {answer.json()["error"]["code"] for answer in answers[1:]} == {"rate_limit_exceeded"}
    assert answers[1].headers["x-ratelimit-limit-requests"] == "1"


def test_another_fleet_in_the_folder_is_refused(box: Box) -> None:
    command = [sys.executable, "-m", "llava_api", "fleet", str(box.folder / "models.toml"), "--port", "0"]
    done = subprocess.run([*command, "--folder", str(box.sockets)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"llava-api: a fleet runs in {box.sockets} already")


def test_others_can_reach_no_socket(box: Box) -> None:
    assert box.sockets.stat().st_mode & 0o777 == 0o700


def test_sigterm_lets_open_requests_end_also_one_whose_model_loads_and_leaves_nothing(tmp_path: Path) -> None:
    with fleet(tmp_path) as box:
        box.ask("c")
        body = question("slow", stream=True)
        url = f"{box.server.base_url}/chat/completions"
        with httpx.stream("POST", url, json=body, headers=KEY, timeout=30) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": loading slow"
            children = box.server.children()
            box.server.process.send_signal(signal.SIGTERM)
            box.server.wait_for("may go on")
            refused = httpx.post(url, json=question("c"), headers=KEY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            (tmp_path / "go").touch()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert box.server.process.wait(20) == 0
        assert have_ended(children, 1)
        assert list(box.sockets.iterdir()) == []


def test_sigkill_of_the_fleet_leaves_no_server(tmp_path: Path) -> None:
    with fleet(tmp_path) as box:
        box.ask("a")
        box.ask("c")
        children = box.server.children()
        assert len(children) >= 2
        box.server.process.kill()
        assert have_ended(children)
    # The sockets that are left are no obstacle.
    with fleet(tmp_path) as box:
        assert box.ask("a").status_code == 200
