"""``GET /version``: what the server runs."""

import platform
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from llava_api import __version__
from llava_api.versions import installed

KEY = "sk-llava-for-anne-0123456789"


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"api_key": [f"anne={KEY}"]}


async def test_it_names_what_is_installed_to_whom_has_a_key(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).status_code == 401
    told = (await client.get("/version", headers={"authorization": f"Bearer {KEY}"})).json()
    assert set(told) == {"version", "vllm", "torch", "transformers", "python"}
    assert (told["version"], told["python"]) == (__version__, platform.python_version())
    assert told["torch"] == version("torch")
    assert told["vllm"]


def test_what_is_not_installed_has_no_version() -> None:
    assert installed("no-such-package-anywhere") is None
    assert installed("no-such-package-anywhere", "pytest") == version("pytest")
