"""What a request may hold inside the server, by name: nothing of it may be left after its end."""

import asyncio
from typing import Any

from fastapi import FastAPI

from llava_api.server.services import Services
from tests.support.waiting import until


def held(app: FastAPI) -> dict[str, Any]:
    """What is held now; empty while no request is open. Work in threads is not part of it: see ``in_threads``."""
    services: Services = app.state.services
    images = services.preparer.images
    fetcher = images.fetcher
    found = {
        "slots": services.admission.running,
        "turns": services.admission.waiting,
        "engine requests": getattr(services.engine, "engine", services.engine).unfinished_requests(),
        "bytes": services.memory.held_bytes,
        "bytes by caller": dict(services.memory.callers),
        "fetches": dict(fetcher.fetches.admission.running_by_caller),
        "shared fetches": [*fetcher.fetches.flights],
        "fetches that wait": [*fetcher.fetches.admission.queues],
        "look-ups that wait": [*fetcher.look_ups.admission.queues],
        "images that wait": images.decoding.admission.waiting + images.measuring.admission.waiting,
        "turns of images": [*images.decoding.admission.queues, *images.measuring.admission.queues],
        "turns of grammars": list(services.preparer.grammars.trials.admission.queues),
    }
    return {name: value for name, value in found.items() if value}


def in_threads(app: FastAPI) -> int:
    images = app.state.services.preparer.images
    return int(images.decoding.admission.running + images.measuring.admission.running)


async def settle(app: FastAPI, tasks: set["asyncio.Task[Any]"], seconds: float = 2) -> None:
    """Wait until nothing is held and no task runs that is not among ``tasks``. Fails with what is left."""

    def left() -> dict[str, Any]:
        more = asyncio.all_tasks() - tasks - {asyncio.current_task()}
        return held(app) | ({"tasks": more} if more else {})

    try:
        await until(lambda: not left(), seconds)
    except TimeoutError:
        raise AssertionError(f"left behind: {left()}") from None
