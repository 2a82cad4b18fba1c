"""How an endpoint is declared, beside its code. The app, the OpenAPI document, docs/api.md and the tests read this."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from llava_api.server.answer import Prepare, answer
from llava_api.settings import Settings

Access = Literal["key", "open", "off"]
"""key: callers need an API key, if there are any; off: the endpoint is not served."""
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Stream:
    """The Server-Sent Events of an answer."""

    description: str
    events: tuple[type[BaseModel], ...]
    """Models of the events' data."""
    done: bool = True
    """Whether the last event's data is ``[DONE]``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As in the OpenAPI document: ``/v1/models/{model}``."""
    route: str = ""
    """Starlette's pattern and the route's name in metrics, if it differs from ``path``."""
    handle: Handler | None = None
    prepare: Prepare[Any] | None = None
    """Takes the place of ``handle`` in an endpoint with a ``request``, which ``answer`` reads and parses."""
    operation_id: str = ""
    summary: str = ""
    reply: type[BaseModel] | None = None
    """None: the endpoint is not part of the OpenAPI document."""
    request: type[BaseModel] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a request besides ``model``."""
    stream: Stream | None = None
    errors: tuple[int, ...] = ()
    """Statuses of errors that do not follow from the other fields (see ``error_statuses``)."""
    spends_tokens: bool = True
    """Whether a request needs some of its caller's tokens per minute."""
    access: Callable[[Settings], Access] = lambda _: "key"
    probe: bool = False
    """Asked by machines every few seconds: answered while the model loads and the server drains, logged at debug level
    only, and not counted among the requests' outcomes."""
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
        return partial(answer, kind=self.request, prepare=self.prepare, spends_tokens=self.spends_tokens)

    def error_statuses(self) -> list[int]:
        """Statuses that the OpenAPI document names besides 200."""
        found = {405, 503, *self.errors}
        if not self.probe:
            found |= {401, 403}
        if "{" in self.path:
            found.add(404)
        if self.request is not None:
            found |= {400, 404, 413, 429, 500}
        return sorted(found)


def add_routes(app: FastAPI, endpoints: Iterable[Endpoint]) -> None:
    """One route for each pattern, so that a 405 names all methods that the address takes."""
    handlers: dict[str, dict[str, Handler]] = {}
    for endpoint in endpoints:
        handlers.setdefault(endpoint.pattern, {})[endpoint.method] = endpoint.handler()
    for pattern, by_method in handlers.items():
        if "GET" in by_method:
            # The HTTP server leaves out the body of an answer to HEAD.
            by_method["HEAD"] = by_method["GET"]
        app.add_api_route(pattern, dispatch(by_method), methods=list(by_method), include_in_schema=False)


def dispatch(by_method: Mapping[str, Handler]) -> Handler:
    async def handle(request: Request) -> Response:
        return await by_method[request.method](request)

    return handle
