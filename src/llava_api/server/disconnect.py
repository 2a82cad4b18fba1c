"""Stop work whose caller has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a caller that left; nobody receives it."""


class ClientGone(Exception):
    """The caller closed the connection; nobody is left to answer."""


async def wait_for_disconnect(receive: Receive) -> None:
    """A caller that closes only its sending side (``shutdown(SHUT_WR)``) has gone too: uvicorn cannot tell the two."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled as soon as the caller goes (then ClientGone is raised).

    A result may be lost where this is cancelled itself: what must be closed in it is to be known elsewhere too.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        # Not gather, which would pass a second cancellation on, into the midst of what is being given back.
        await asyncio.wait({working, leaving})
        for task in (working, leaving):
            task.cancelled() or task.exception()
