"""One request to one answer: the body is read and parsed, and the work ends when its caller goes or its time is up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from llava_api.server.body import parse, read_body
from llava_api.server.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_disconnected
from llava_api.server.life import Life
from llava_api.server.services import Services, caller_of
from llava_api.server.sse import EventStream
from llava_api.telemetry.record import current

Body = TypeVar("Body", bound=BaseModel)
Answer = Callable[[Services, Request, Body], Coroutine[Any, Any, Response]]


async def exchange(request: Request, kind: type[Body], answer: Answer[Body], spends_tokens: bool = True) -> Response:
    """``answer`` is cancelled where the caller goes before it has an answer; a stream's end is the stream's own care.

    The request's ``allowance`` is put into its state; ``middleware/allowances.py`` ends it. Raises ApiError.
    """
    services: Services = request.app.state.services
    caller = caller_of(request)
    request.state.allowance = services.limiter.allowance(caller)
    await request.state.allowance.enter(spends_tokens)
    life = Life(services.settings.request_timeout_seconds, services.memory.hold(caller))
    request.state.life = life
    response = None
    clock = asyncio.timeout_at(life.deadline)
    try:
        async with clock:
            response = await answer_to(request, services, life, kind, answer)
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except TimeoutError as error:
        raise (life.timed_out() if clock.expired() else error) from error
    finally:
        if not isinstance(response, EventStream):
            life.end()
    return response


async def answer_to(
    request: Request, services: Services, life: Life, kind: type[Body], answer: Answer[Body]
) -> Response:
    # In one go: whatever held the body's parts here would hold its pictures as long as the answer takes.
    return await unless_disconnected(
        request.receive, answer(services, request, await asked_for(request, services, life, kind))
    )


async def asked_for(request: Request, services: Services, life: Life, kind: type[Body]) -> Body:
    wanted = parse(await read_body(request, services.settings.max_body_bytes, life.held), kind)
    record = current()
    record.model, record.stream = getattr(wanted, "model", None), bool(getattr(wanted, "stream", False))
    return wanted


def json_response(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def reply_id(request: Request, prefix: str) -> str:
    """The reply's id is the request's, under the name that OpenAI gives it."""
    return prefix + str(request.state.request_id).removeprefix("req_")
