"""Everything that a request may hold inside the server, by name: nothing of it may be left behind."""

import asyncio
from typing import Any

from fastapi import FastAPI

from llava_api.server.services import Services
from tests.support.waiting import until


def held(app: FastAPI) -> dict[str, Any]:
    """What is held now; empty where nobody is being answered. Threads at work are not in it: see ``in_threads``."""
    services: Services = app.state.services
    images = services.preparer.images
    fetcher = images.fetcher
    found = {
        "slots": services.admission.running,
        "turns": services.admission.waiting,
        "engine requests": services.engine.unfinished_requests(),
        "bytes": services.memory.held_bytes,
        "bytes by caller": dict(services.memory.callers),
        "fetches": dict(fetcher.slots.holding),
        "shared fetches": [*fetcher.flights.flights, *fetcher.waiting.flights],
        "connections to picture hosts": len(fetcher.pool.connections),
        "pictures that wait": images.pool.waiting + images.measuring_pool.waiting,
        "turns of pictures": [*images.pool.queues, *images.measuring_pool.queues],
        "turns of grammars": list(services.preparer.grammars.turns),
    }
    return {name: value for name, value in found.items() if value}


def in_threads(app: FastAPI) -> int:
    images = app.state.services.preparer.images
    return int(images.pool.running + images.measuring_pool.running)


async def settle(app: FastAPI, tasks: set["asyncio.Task[Any]"], seconds: float = 2) -> None:
    """Wait until nothing is held and no task runs that is not among ``tasks``. Fails with what is left."""

    def left() -> dict[str, Any]:
        more = {
            task
            for task in asyncio.all_tasks() - tasks - {asyncio.current_task()}
            # sse-starlette has one of these for each event loop, from the first stream on.
            if getattr(task.get_coro(), "__qualname__", "") != "_shutdown_watcher"
        }
        return held(app) | ({"tasks": more} if more else {})

    try:
        await until(lambda: not left(), seconds)
    except TimeoutError:
        raise AssertionError(f"left behind: {left()}") from None
