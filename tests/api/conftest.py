"""The real app over ASGI, a scripted engine behind it."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from safetensors.torch import save_file

from llava_api.chat.model import open_model
from llava_api.chat.prepare import Preparer
from llava_api.server.app import create_app
from llava_api.server.services import Services
from llava_api.settings import Settings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def app(engine: ScriptedEngine, tmp_path: Path) -> Iterator[FastAPI]:
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "adapter_config.json").write_text('{"r": 8}')
    save_file({}, tmp_path / "birds" / "adapter_model.safetensors")
    settings = Settings(
        max_body_bytes=300_000,
        max_image_bytes=100_000,
        max_image_pixels=1_000_000,
        lora=[f"birds={tmp_path / 'birds'}"],
    )
    model = open_model(str(write_checkpoint(tmp_path / "model")), ("owner/tiny", "tiny"), settings)
    with ThreadPoolExecutor(2) as threads:
        preparer = Preparer(model, settings, engine.max_model_len, threads)
        yield create_app(Services(settings, model, engine, preparer))


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened
