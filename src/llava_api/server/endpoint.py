"""How an endpoint is declared, beside its code. The app, the OpenAPI document, docs/api.md and the tests read this."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from llava_api.protocol.wire import RequestObject
from llava_api.server.answer import Prepare, answer
from llava_api.server.sse import EventStream
from llava_api.settings import Settings

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As the OpenAPI document has it: ``/v1/models/{model}``."""
    handle: Handler | None = None
    _: KW_ONLY
    prepare: Prepare[Any] | None = None
    """Takes the place of ``handle`` in an endpoint with a ``request``, which ``answer`` reads and parses."""
    operation_id: str = ""
    summary: str = ""
    request: type[RequestObject] | None = None
    form: type[RequestObject] | None = None
    """The fields of a body that is multipart/form-data, which ``handle`` reads."""
    query: type[RequestObject] | None = None
    """The fields of the address's query, which ``handle`` reads."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a request besides ``model``."""
    reply: type[BaseModel] | None = None
    """None: the endpoint is left out of the OpenAPI document."""
    events: tuple[type[BaseModel], ...] = ()
    """Models of the data of Server-Sent Events or lines, if the endpoint can stream."""
    stream: type[EventStream] = EventStream
    route: str = ""
    """Starlette's pattern, and the route's name in metrics and logs, if it is not ``path``."""
    access: Callable[[Settings], Literal["key", "open", "off"]] = lambda _: "key"
    """key: callers need an API key, if the server has any; off: the endpoint is not served."""
    spends_tokens: bool = True
    """Whether a request is refused while its caller has no tokens per minute left."""
    probe: bool = False
    """Asked by machines every few seconds. It is answered while the model loads and the server drains, logged at debug
    level only, and its errors are not counted."""
    short_path: bool = False
    """Whether --short-paths also serves it without ``/v1``."""

    @property
    def pattern(self) -> str:
        return self.route or self.path

    def handler(self) -> Handler:
        if self.handle is not None:
            return self.handle
        assert self.request is not None
        assert self.prepare is not None
        return partial(
            answer, kind=self.request, prepare=self.prepare, spends_tokens=self.spends_tokens, stream=self.stream
        )


class EndpointRoute(Route):
    """Not FastAPI's route, which would look for the handler's parameters in each request."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        # For the route's name in metrics and logs, as FastAPI sets it.
        return match, {**found, "route": self}


def routes_of(endpoints: Iterable[Endpoint]) -> list[BaseRoute]:
    """One route for each pattern, so that a 405 names all methods that the address takes."""
    handlers: dict[str, dict[str, Handler]] = {}
    for endpoint in endpoints:
        handlers.setdefault(endpoint.pattern, {})[endpoint.method] = endpoint.handler()
    return [
        EndpointRoute(pattern, dispatch(by_method), methods=[*by_method]) for pattern, by_method in handlers.items()
    ]


def dispatch(by_method: Mapping[str, Handler]) -> Handler:
    async def handle(request: Request) -> Response:
        # The HTTP server leaves out the body of an answer to HEAD.
        return await by_method["GET" if request.method == "HEAD" else request.method](request)

    return handle
