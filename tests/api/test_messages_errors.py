"""Refusals on the paths of Anthropic's API: in its shape, whichever layer refuses, and with the key in its header."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.support.anthropic_shapes import check_error

MESSAGES = "/v1/messages"
KEY, OTHER = "sk-llava-for-anne-0123456789", "sk-llava-for-ben-0123456789"


def error_of(reply: httpx.Response) -> tuple[int, str, str | None]:
    """Status, Anthropic's type and our code."""
    body = reply.json()
    check_error(body)
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    return reply.status_code, body["error"]["type"], body["error"]["code"]


async def test_no_such_address(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get(f"{MESSAGES}/batches")) == (404, "not_found_error", "not_found")


async def test_the_model_is_loading(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.services, services = None, app.state.services
    reply = await client.post(MESSAGES, json={})
    assert error_of(reply) == (503, "overloaded_error", "model_not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    app.state.services = services


class TestKeys:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "keys").write_text(f"anne={KEY}\nben={OTHER}\n")
        return {"api_key_file": [str(tmp_path / "keys")]}

    @pytest.mark.parametrize(
        "headers",
        [
            [("x-api-key", KEY)],
            [("x-api-key", f" {KEY} ")],
            [("authorization", f"Bearer {KEY}")],
            [("authorization", f"Bearer {KEY}"), ("x-api-key", "none")],
            [("authorization", "Bearer none"), ("x-api-key", KEY)],
        ],
    )
    async def test_a_key_in_either_header(self, client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
        assert (await client.get(f"{MESSAGES}/batches", headers=headers)).status_code == 404

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("x-api-key", "wrong")],
            [("x-api-key", "")],
            [("x-api-key", f"Bearer {KEY}")],
            [("x-api-key", KEY), ("x-api-key", OTHER)],
            [("authorization", "Bearer wrong"), ("x-api-key", "wrong")],
        ],
    )
    async def test_no_right_key(self, client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
        reply = await client.post(MESSAGES, json={}, headers=headers)
        assert error_of(reply) == (401, "authentication_error", "invalid_api_key")
        assert ("x-api-key" in reply.json()["error"]["message"]) == (not headers)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/messages-of-mine", "/v1/message"])
    async def test_other_paths_take_no_such_header(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(path, headers={"x-api-key": KEY})).status_code == 401
