"""What all endpoints do that answer a request body: read it, make the reply, and send it whole or as a stream."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from llava_api.chat.answers import Answers, AnswerSpec
from llava_api.limits.account import Account
from llava_api.protocol.wire import PlainText
from llava_api.server.body import Model, read_request
from llava_api.server.producer import Deadline, End, Reply, ReplyProducer, Stopped
from llava_api.server.services import Services
from llava_api.server.sse import EventStream
from llava_api.server.state import exchange_of, services_of
from llava_api.telemetry.record import current

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that has closed the connection; it is only seen in logs and metrics."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an endpoint needs besides the request body."""

    services: Services
    account: Account
    request_id: str
    own_id: str
    """The server's own id of the request, which no other request has."""
    key_name: str

    def reply_id(self, prefix: str) -> str:
        """The reply's id is the request's, with the prefix that OpenAI's has."""
        return prefix + self.own_id.removeprefix("req_")

    def answers(self, spec: AnswerSpec) -> Answers:
        """What the engine will answer, charged to the request's account."""
        services = self.services
        return Answers(services.engine, services.turns, spec, self.account, services.model.adapters)


Prepare = Callable[[Context, Model], Awaitable[Reply | BaseModel]]


async def answer(
    request: Request, kind: type[Model], prepare: Prepare[Model], spends_tokens: bool, stream: type[EventStream]
) -> Response:
    """``prepare`` turns a body of type ``kind`` into a reply that is to be generated, or into one that is complete.

    An error is raised until the status is sent; after that it is the last event of the stream. Raises ApiError.
    """
    exchange, services = exchange_of(request.scope), services_of(request)
    settings = services.settings
    if spends_tokens:
        visit = services.enter()
        exchange.callback(visit.leave)
        current().on_first_token = visit.begin_answer
    account = await exchange.open_account(services.limiter, services.memory, spends_tokens)
    context = Context(services, account, exchange.request_id, exchange.own_id, exchange.key_name)
    deadline = Deadline(settings.request_timeout_seconds)
    try:
        # The body is no variable here, which would keep its images in memory until the end of the answer.
        async with deadline.enforced():
            reading = read_request(request, kind, settings.max_body_bytes, settings.strict_fields, account)
            producer = ReplyProducer(partial(prepare, context), await reading, deadline)
        exchange.push_async_callback(producer.close)
        producer.task.add_done_callback(lambda _: account.memory.release())
        watching = asyncio.create_task(cancel_on_disconnect(request.receive, producer))
        exchange.callback(watching.cancel)
        first = await producer.first(settings.stream_head_seconds)
        if isinstance(first, End) and first.error is not None:
            raise first.error
    except (Stopped, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if producer.reply is not None:
        return stream(producer, producer.reply, first, settings.stream_keep_alive_seconds)
    assert isinstance(first, list)
    return response_of(first[0])


async def cancel_on_disconnect(receive: Receive, producer: ReplyProducer) -> None:
    """A client that only closes its sending side (``shutdown(SHUT_WR)``) counts as gone: uvicorn sees no difference."""
    while (await receive())["type"] != "http.disconnect":
        pass
    producer.cancel()


def response_of(reply: BaseModel) -> Response:
    return PlainTextResponse(reply.root) if isinstance(reply, PlainText) else json_response(reply)


def json_response(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")
