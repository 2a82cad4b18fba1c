"""The real app over ASGI, with a scripted engine."""

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from llava_api.chat.model import open_model
from llava_api.engine.base import Adapter
from llava_api.images import fetch
from llava_api.images.fetch import Fetcher, Resolve
from llava_api.limits.account import RateLimiter
from llava_api.limits.keys import KeyRing
from llava_api.limits.windows import Windows
from llava_api.server.app import create_app
from llava_api.server.listening import listen
from llava_api.server.services import Services
from llava_api.settings import Settings
from tests.support.batch_server import Serve, Server, servers
from tests.support.clock import Clock
from tests.support.openai_schemas import ValidatingTransport
from tests.support.running_server import serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint
from tests.support.web import Web, small_web


@pytest.fixture(scope="session", autouse=True)
def one_ssl_context() -> Iterator[None]:
    """Every app of every test reads the certificate authorities, which takes 25 ms."""
    create = fetch.httpcore2.default_ssl_context

    @cache
    def create_once(certificate_file: str | None) -> ssl.SSLContext:
        return create()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch.httpcore2, "default_ssl_context", lambda **_: create_once(os.environ.get("SSL_CERT_FILE")))
        yield


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def settings_made() -> dict[str, Any]:
    """Settings that differ from the defaults. Overridden by test modules."""
    return {}


@pytest.fixture
def pinpoints() -> list[list[int]] | None:
    """Pinpoints of a LLaVA-1.6 checkpoint; None makes it a 1.5. Overridden by test modules."""
    return None


@pytest.fixture
def resolver() -> Resolve | None:
    """Looks up the names of image hosts; None for the system's. Overridden by test modules."""
    return None


@pytest_asyncio.fixture
async def web() -> AsyncIterator[Web]:
    async with small_web() as made:
        yield made


@pytest_asyncio.fixture
async def fetcher(web: Web) -> AsyncIterator[Fetcher]:
    async with web.fetcher() as made:
        yield made


@pytest_asyncio.fixture
async def app(
    engine: ScriptedEngine,
    tmp_path: Path,
    settings_made: dict[str, Any],
    pinpoints: list[list[int]] | None,
    resolver: Resolve | None,
) -> AsyncIterator[FastAPI]:
    small = {"max_body_bytes": 300_000, "max_image_bytes": 100_000, "max_image_pixels": 1_000_000}
    settings = Settings.model_validate(small | settings_made)
    model = open_model(str(write_checkpoint(tmp_path / "model", pinpoints)), ("owner/tiny", "tiny"), settings)
    model.adapters.served["birds"] = Adapter("birds", "an adapter's folder", 1, 8)
    services = Services(settings, model, engine, resolver)
    yield create_app(settings, KeyRing(settings), services)
    await services.close()


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = ValidatingTransport(httpx.ASGITransport(app, raise_app_exceptions=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(app: FastAPI, clock: Clock) -> RateLimiter:
    """The app's, with windows that go by ``clock``."""
    services = app.state.services
    made: RateLimiter = RateLimiter(services.limiter.table, Windows(clock=clock))
    services.limiter = made
    return made


@pytest_asyncio.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    """The port of the app on a real socket, where a request line can be anything."""
    # At this address, also for tests whose settings name another.
    async with serve_app(app, listen(Settings(port=0))) as server:
        port: int = server.address[1]
        yield port


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Starts the app with batches, again and again on one folder."""
    return servers(tmp_path)


@pytest_asyncio.fixture
async def server(serve: Serve, engine: ScriptedEngine) -> AsyncIterator[Server]:
    async with serve(engine) as started:
        yield started
