"""One request to one answer: the body is read and parsed, and the work ends when its caller goes."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from llava_api.server.body import parse, read_body
from llava_api.server.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_disconnected
from llava_api.server.services import Services, caller_of
from llava_api.telemetry.record import current

Body = TypeVar("Body", bound=BaseModel)


async def exchange(
    request: Request,
    kind: type[Body],
    answer: Callable[[Services, Request, Body], Awaitable[Response]],
    spends_tokens: bool = True,
) -> Response:
    """``answer`` is cancelled where the caller goes before it has an answer; a stream's end is the stream's own care.

    The request's ``allowance`` is put into its state; ``middleware/allowances.py`` ends it. Raises ApiError.
    """
    services: Services = request.app.state.services

    async def work() -> Response:
        return await answer(services, request, wanted)

    request.state.allowance = services.limiter.allowance(caller_of(request))
    await request.state.allowance.enter(spends_tokens)
    try:
        wanted = parse(await read_body(request, services.settings.max_body_bytes), kind)
        record = current()
        record.model, record.stream = getattr(wanted, "model", None), bool(getattr(wanted, "stream", False))
        return await unless_disconnected(request, work())
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def json_response(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def reply_id(request: Request, prefix: str) -> str:
    """The reply's id is the request's, under the name that OpenAI gives it."""
    return prefix + str(request.state.request_id).removeprefix("req_")
