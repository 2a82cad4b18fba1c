"""The app with the server's own HTTP layer, on real sockets and on the product's event loop."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest_asyncio
import uvloop
from fastapi import FastAPI

from tests.support.running_server import RunningServer, serve_app


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def edge(app: FastAPI) -> AsyncIterator[RunningServer]:
    async with serve_app(app) as made:
        yield made
