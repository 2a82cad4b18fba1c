"""What an operator sees of a running server: its metrics on a second port, and a line for each request."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import Server, running_server
from tests.support.metrics_page import read_page

KEY = "sk-llava-for-anne-0123456789"
ANNE = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator") / "terminal.txt"


@pytest.fixture(scope="module")
def watched(terminal: Path) -> Iterator[Server]:
    flags = ("--metrics-port", "0", "--api-key", f"anne={KEY}", "--served-model-name", "shown")
    with running_server("llava-tiny-1.5", terminal, *flags) as running:
        yield running


def test_metrics_on_a_port_of_their_own_and_a_line_for_each_request(watched: Server, terminal: Path) -> None:
    found = re.search(r"metrics and health without a key: (http://\S+)/metrics", watched.terminal)
    assert found is not None
    question = {"model": "shown", "messages": [{"role": "user", "content": "A secret question"}], "max_tokens": 5}
    with httpx.Client(timeout=60) as client:
        reply = client.post(f"{watched.base_url}/chat/completions", json=question, headers=ANNE)
        assert reply.status_code == 200
        assert client.post(f"{watched.base_url}/chat/completions", json=question).status_code == 401
        assert client.get(f"{found[1]}/health/ready").status_code == 200
        assert client.get(f"{found[1]}/v1/models", headers=ANNE).status_code == 404
        page = read_page(client.get(f"{found[1]}/metrics").text)
        main = watched.base_url.removesuffix("/v1")
        assert client.get(f"{main}/metrics").status_code == 401
        assert client.get(f"{main}/metrics", headers=ANNE).status_code == 200
    assert page.value("llava_api_completion_tokens_total", model="shown", key="anne") == 5
    assert page.labels("vllm:generation_tokens_total", "model_name") == {"shown"}
    assert page.total("vllm:generation_tokens_total") >= 5
    lines = [line for line in terminal.read_text().splitlines() if "route=/v1/chat/completions" in line]
    answered, refused = lines
    assert f"request_id={reply.headers['x-request-id']} key=anne client=127.0.0.1 " in answered
    assert " status=200 outcome=ok model=shown " in answered
    assert " completion_tokens=5 finish_reason=length " in answered
    assert " status=401 outcome=refused code=invalid_api_key " in refused
    # vLLM's statistics are in the metrics alone.
    written = terminal.read_text()
    for absent in ("secret question", KEY, "throughput"):
        assert absent not in written
