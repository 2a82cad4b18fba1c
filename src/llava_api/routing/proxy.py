"""The router's application: the server's middleware, and the addresses that it passes on."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from llava_api.chat.ollama_question import LATEST
from llava_api.chat.prepare import chosen_name
from llava_api.errors import ErrorCode, NotFound, Unavailable
from llava_api.limits.account import Account
from llava_api.limits.keys import KeyRing
from llava_api.limits.memory import MemoryBudget
from llava_api.protocol.ollama_reply import OllamaDetails, OllamaModel, OllamaModelList
from llava_api.routing.backends import Backend, Backends, Wanted
from llava_api.routing.connections import NETWORK_ERRORS
from llava_api.routing.passage import UNREACHED, Passage, end_early, headers_for
from llava_api.routing.question import read_question
from llava_api.server import error_handlers, routes
from llava_api.server.answer import json_response
from llava_api.server.app import add_middleware, served_endpoints
from llava_api.server.body import COPIES_GROWN, read_body
from llava_api.server.endpoint import Endpoint, Handler, routes_of
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.routes.server_info import anthropic_models, for_anthropic
from llava_api.server.state import AppState, exchange_of, set_state
from llava_api.settings import Settings
from llava_api.telemetry.record import current

SERVED = (
    *(routes.chat, routes.completions, routes.responses, routes.anthropic, routes.explain, routes.tokenize),
    *(routes.ollama, routes.server_info, routes.probes),
)
"""Listed, so that an address which a server gets later, such as one that manages it, is not open here by accident."""
STREAMING_BY_DEFAULT = ("/api/chat", "/api/generate")
OLLAMA_DETAILS = OllamaDetails(family="llava", families=["llava", "clip"], parameter_size="", quantization_level="")
NOT_THERE = "No server that answers has this model, and others do not answer: check the name, or try again in a moment."


class Router:
    """``ending``: the drain's time is over."""

    def __init__(self, settings: Settings, backends: Backends, lifecycle: Lifecycle) -> None:
        self.settings = settings
        self.backends = backends
        self.metrics = backends.metrics
        self.connections = backends.connections
        self.state = AppState()
        self.state.services, self.state.loaded, self.state.lifecycle = None, False, lifecycle
        # They have what the probes call.
        self.state.metrics = self.metrics  # type: ignore[assignment]
        self.memory = MemoryBudget(max(settings.max_inflight_bytes, COPIES_GROWN * settings.max_body_bytes))
        self.passages: set[asyncio.Timeout] = set()
        """Open requests."""
        self.ending = False

    async def supervise(self) -> str:
        return await self.backends.supervise()

    def abandon(self) -> None:
        """End the open requests, with an error where one can still be sent."""
        self.ending = True
        for passage in self.passages:
            end_early(passage)

    # Requests for a model

    async def ask(self, request: Request) -> Passage:
        exchange, record, path = exchange_of(request.scope), current(), request.scope["path"]
        account = Account(exchange.caller, self.memory.hold(exchange.caller))
        exchange.callback(account.memory.release)
        body = await read_body(request, self.settings.max_body_bytes, account)
        account.memory.keep(len(body))
        question = read_question(body, streams_by_default=path in STREAMING_BY_DEFAULT)
        model = self.served_name(question.model)
        record.model, record.stream = model, question.streamed
        keeper = await self.keeper(request, question.previous_response) if question.previous_response else None
        wanted = Wanted(model, question.affinity, keeper, exchange.caller)
        commented = model if question.streamed and not path.startswith("/api/") else ""
        return Passage(self, request, body, partial(self.backends.place, wanted), commented)

    def served_name(self, given: str) -> str:
        """Raises InvalidRequest and NotFound, as the server does."""
        models = self.backends.models()
        names = [str(model["id"]) for model in models]
        if not names:
            raise Unavailable(UNREACHED)
        if given not in names and given.removesuffix(LATEST) in names:
            return given.removesuffix(LATEST)
        # With one model and its adapters, its server says what the request lacks, which for some addresses is nothing.
        alone = len({model.get("root", model["id"]) for model in models if not model.get("parent")}) == 1
        try:
            return chosen_name(given, names, self.settings.any_model or (alone and not given))
        except NotFound:
            if self.backends.complete:
                raise
            message = f"{NOT_THERE} Known: {', '.join(names)}."
            raise Unavailable(message, code=ErrorCode.MODEL_NOT_READY) from None

    # Stored responses, which their replica holds

    async def stored(self, request: Request) -> Passage:
        backend = await self.keeper(request, f"resp_{request.path_params['number']}")
        # If none has it, any of them says so.
        backend = backend or next(iter(self.backends.running()), None)

        def find(tried: object) -> AbstractAsyncContextManager[Backend]:
            if tried or backend is None:
                raise Unavailable(UNREACHED)
            return nullcontext(backend)

        return Passage(self, request, b"", find)

    async def keeper(self, request: Request, response_id: str) -> Backend | None:
        """The backend that stores a response. All are asked, so that several routers need not know of each other."""
        running = self.backends.running()
        if len(running) < 2:
            return next(iter(running), None)
        target = f"/v1/responses/{quote(response_id, safe='')}"

        async def has(backend: Backend) -> bool:
            try:
                async with self.connections.request(backend, "HEAD", target, headers_for(request)) as answer:
                    return answer.status == 200
            except NETWORK_ERRORS:
                return False

        found = await asyncio.gather(*map(has, running))
        return next((backend for backend, has in zip(running, found, strict=True) if has), None)

    # What the router answers itself

    async def adapters(self, request: Request) -> Response:
        raise NotFound(
            "Adapters are not loaded through this address: send this to each server of the model, or name the adapter "
            "in the fleet's file (lora)."
        )

    async def models(self, request: Request) -> Response:
        models = self.backends.models()
        if for_anthropic(request):
            return json_response(anthropic_models((model["id"], model["created"]) for model in models))
        return as_json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        models = {str(model["id"]): model for model in self.backends.models()}
        name = chosen_name(request.path_params["name"], list(models), self.settings.any_model)
        if for_anthropic(request):
            return json_response(anthropic_models([(name, models[name]["created"])]).data[0])
        return as_json(models[name])

    async def ollama_models(self, request: Request) -> Response:
        """With the fields that clients of Ollama's API look at."""
        running = request.scope["path"] == "/api/ps"
        models = [
            OllamaModel(**routes.ollama.model_fields(model["id"], model["created"], 0, "", OLLAMA_DETAILS))
            for model in self.backends.models()
            if not running or model["status"] == "ready"
        ]
        return json_response(OllamaModelList(models=models))

    # The addresses

    def endpoints(self) -> Iterator[Endpoint]:
        own: dict[str, Handler] = {
            "/v1/models": self.models,
            "/v1/models/{model}": self.model,
            "/api/tags": self.ollama_models,
            "/api/ps": self.ollama_models,
        }
        for endpoint in (endpoint for module in SERVED for endpoint in module.ENDPOINTS):
            handle = self.ask if endpoint.request else own.get(endpoint.path, endpoint.handle)
            yield replace(endpoint, handle=self.stored if endpoint.path.startswith(routes.responses.PATH) else handle)
        for endpoint in routes.lora.ENDPOINTS:
            yield Endpoint("POST", endpoint.path, self.adapters)


def router_app(router: Router, keys: KeyRing, lifespan: Any = None) -> Starlette:
    settings, state = router.settings, router.state
    endpoints = served_endpoints(settings, router.endpoints())
    app = Starlette(routes=routes_of(endpoints), lifespan=lifespan)
    app.router.redirect_slashes = False
    set_state(app, state)
    add_middleware(app, settings, keys, endpoints, state.lifecycle, lambda: state.loaded, router.metrics, tracing=None)
    error_handlers.install(app, ollama_api=settings.ollama_api)
    return app


def as_json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
