"""curl, and the clients that most people use in environments of their own, which are installed here.

``make test-clients`` tries all of them; their tests are in ``tests/clients/python`` and ``node``.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.questions import data_url
from tests.support.serve import Server
from tools.client_tests import CLIENTS, MODEL, try_client
from tools.setup_venv import ROOT

README_ADDRESS = "http://127.0.0.1:8000/v1"
LONGEST_ARGUMENT = 128 * 1024
"""Of a command line on Linux, in bytes."""

pytestmark = pytest.mark.parametrize("server", [MODEL], indirect=True)


@pytest.mark.parametrize("name", ["openai", "langchain", "openai-node"])
def test_client(server: Server, name: str) -> None:
    outcome = try_client(CLIENTS[name], server.base_url)
    if not outcome.passed:
        pytest.fail(outcome.output, pytrace=False)


def content_of(reply: bytes) -> Any:
    return json.loads(reply)["choices"][0]["message"]["content"]


def test_the_readmes_curl_line(server: Server) -> None:
    found = re.search(r"^\$ (curl .*?\]\}\]\}')$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    line = found[1].replace(README_ADDRESS, server.base_url)
    assert content_of(subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=True).stdout) == (
        "A red circle."
    )


def test_curl_with_the_body_in_a_file(server: Server, tmp_path: Path) -> None:
    """The way for images that are too long for a command line."""
    image = Image.open(ROOT / "tests" / "clients" / "pictures" / "blue-star.png").convert("RGB").resize((2240, 1680))
    content = [
        {"type": "text", "text": "What is in this image?"},
        {"type": "image_url", "image_url": {"url": data_url(image, "BMP")}},
    ]
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}]}))
    assert body.stat().st_size > LONGEST_ARGUMENT
    command = ["curl", "-s", f"{server.base_url}/chat/completions", "-H", "Content-Type: application/json"]
    reply = subprocess.run([*command, "-d", f"@{body}"], capture_output=True, check=True).stdout
    assert content_of(reply) == "A blue star."
