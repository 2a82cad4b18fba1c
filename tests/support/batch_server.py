"""The app with batches and two keys, which can be started again on the same folder."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from fastapi import FastAPI

from llava_api.chat.model import open_model
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.batch_requests import start_batches
from llava_api.server.services import Services
from llava_api.settings import Settings
from tests.support.metrics_page import Page, read_page
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint

KEYS = {"alice": "sk-alice-0123456789abcdef", "bob": "sk-bob-0123456789abcdef"}


class Server:
    def __init__(self, app: FastAPI, keys: KeyRing) -> None:
        self.app = app
        self.services: Services = app.state.services
        self.keys = keys

    def api(self, name: str) -> openai.AsyncOpenAI:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")
        return openai.AsyncOpenAI(api_key=KEYS[name], base_url="http://test/v1", http_client=http, max_retries=0)

    async def metrics(self) -> Page:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
            return read_page((await client.get("/metrics", headers={"Authorization": f"Bearer {KEYS['bob']}"})).text)


Serve = Callable[..., Any]


def servers(folder: Path) -> Serve:
    checkpoint = str(write_checkpoint(folder / "model", None))

    @asynccontextmanager
    async def served(engine: ScriptedEngine, **chosen: Any) -> AsyncIterator[Server]:
        settings = Settings.model_validate(
            {
                "data_dir": str(folder / "data"),
                "min_free_disk_bytes": 0,
                "api_key": [f"{name}={key}" for name, key in KEYS.items()],
            }
            | chosen
        )
        keys = KeyRing(settings)
        services = Services(settings, open_model(checkpoint, ("tiny",), settings), engine)
        app = create_app(settings, keys, services)
        await start_batches(services, keys, app.state.lifecycle)
        try:
            yield Server(app, keys)
        finally:
            await services.close()

    return served


async def counted(api: openai.AsyncOpenAI, batch_id: str, least: int = 1) -> int:
    """Wait for ``least`` answers."""
    async with asyncio.timeout(20):
        while True:
            counts = (await api.batches.retrieve(batch_id)).request_counts
            if counts is not None and counts.completed >= least:
                return counts.completed
            await asyncio.sleep(0.01)
