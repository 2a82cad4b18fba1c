"""The router's application: the server's middleware, and the addresses that it passes on.

Addresses are listed, so one that a server gets later, such as one that manages it, is not open here by accident.
"""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from llava_api.chat.ollama_question import LATEST
from llava_api.chat.ollama_reply import ollama_time
from llava_api.chat.prepare import chosen_name
from llava_api.errors import ErrorCode, NotFound, Unavailable
from llava_api.limits.account import Account
from llava_api.limits.keys import KeyRing
from llava_api.limits.memory import MemoryBudget
from llava_api.protocol.anthropic_reply import AnthropicModel, AnthropicModelList
from llava_api.protocol.server_info import Health
from llava_api.routing.backends import Backend, Backends, Wanted
from llava_api.routing.connections import NETWORK_ERRORS, Connections
from llava_api.routing.passage import UNREACHED, Passage, headers_for
from llava_api.routing.question import read_question
from llava_api.server import error_handlers
from llava_api.server.answer import json_response
from llava_api.server.app import add_middleware
from llava_api.server.body import COPIES_GROWN, read_body
from llava_api.server.endpoint import Endpoint, routes_of
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.middleware.availability import refusal
from llava_api.server.routes import ollama
from llava_api.server.routes.server_info import for_anthropic, version
from llava_api.server.state import exchange_of
from llava_api.settings import Settings
from llava_api.telemetry.record import current
from llava_api.telemetry.router_metrics import RouterMetrics

STORED = "/v1/responses/resp_{number}"
ASKING = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/messages"),
    *("/v1/messages/count_tokens", "/v1/explain", "/tokenize", "/detokenize"),
)
OLLAMA_ASKING = ("/api/chat", "/api/generate", "/api/show")
OLLAMA_STREAMING = ("/api/chat", "/api/generate")
OLLAMA_DETAILS = {"parent_model": "", "format": "safetensors", "family": "llava", "families": ["llava", "clip"]}
OLLAMA_DETAILS |= {"parameter_size": "", "quantization_level": ""}
ADAPTERS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
SHORT = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""What --short-paths serves without /v1 too, with the addresses below them."""
NOT_THERE = "No server that answers has this model, and others do not answer: check the name, or try again in a moment."


class Router:
    """``is_loaded``: whether requests are taken. ``ending``: the drain's time is over."""

    def __init__(
        self,
        settings: Settings,
        backends: Backends,
        connections: Connections,
        lifecycle: Lifecycle,
        metrics: RouterMetrics,
    ) -> None:
        self.settings = settings
        self.backends = backends
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.connections = connections
        self.memory = MemoryBudget(max(settings.max_inflight_bytes, COPIES_GROWN * settings.max_body_bytes))
        self.passages: set[asyncio.Timeout] = set()
        """Open requests."""
        self.is_loaded = False
        self.ending = False

    def abandon(self) -> None:
        """End the open requests, with an error where one can still be sent."""
        self.ending = True
        for passage in self.passages:
            passage.reschedule(0)

    # Requests for a model

    async def ask(self, request: Request) -> Passage:
        exchange, record, path = exchange_of(request.scope), current(), request.scope["path"]
        account = Account(exchange.caller, self.memory.hold(exchange.caller))
        exchange.callback(account.memory.release)
        body = bytes(await read_body(request, self.settings.max_body_bytes, account))
        account.memory.keep(len(body))
        question = read_question(body, streams_by_default=path in OLLAMA_STREAMING)
        model = self.served_name(question.model)
        record.model, record.stream = model, question.streamed
        keeper = None
        if question.previous_response:
            keeper = await self.keeper(request, question.previous_response)
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
        found = await self.keeper(request, f"resp_{request.path_params['number']}")
        # If none has it, any of them says so.
        backend = found or next(iter(self.backends.running()), None)

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
            cards = [anthropic_card(model) for model in models]
            ends = (cards[0].id, cards[-1].id) if cards else ("", "")
            return json_response(AnthropicModelList(data=cards, first_id=ends[0], last_id=ends[1]))
        return as_json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        models = {str(model["id"]): model for model in self.backends.models()}
        found = models[chosen_name(request.path_params["name"], list(models), self.settings.any_model)]
        return json_response(anthropic_card(found)) if for_anthropic(request) else as_json(found)

    async def ollama_models(self, request: Request) -> Response:
        """With the fields that clients of Ollama's API look at."""
        running = request.scope["path"] == "/api/ps"
        models = [model for model in self.backends.models() if not running or model["status"] == "ready"]
        return as_json({"models": [ollama_card(model) for model in models]})

    async def live(self, request: Request) -> Response:
        if self.lifecycle.failure is not None:
            raise refusal(self.lifecycle, self.is_loaded) or self.lifecycle.failure
        return json_response(Health(status="live"))

    async def ready(self, request: Request) -> Response:
        refused = refusal(self.lifecycle, self.is_loaded)
        if refused is not None:
            raise refused
        return json_response(Health(status="ready"))

    async def metrics_page(self, request: Request) -> Response:
        self.metrics.sample()
        content, content_type = await asyncio.to_thread(self.metrics.page, request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    # The addresses

    def probes(self) -> list[Endpoint]:
        """What the second port serves too."""
        probe = partial(Endpoint, "GET", access=lambda _: "open", probe=True)
        health = [probe("/health/live", self.live), probe("/health/ready", self.ready), probe("/health", self.ready)]
        metrics = Endpoint("GET", "/metrics", self.metrics_page, access=lambda settings: settings.metrics, probe=True)
        return [*health, metrics]

    def endpoints(self) -> list[Endpoint]:
        at: Callable[[Literal["GET", "POST", "DELETE"], str, Any], Endpoint] = Endpoint
        served = [at("POST", path, self.ask) for path in ASKING]
        served += [at("GET", STORED, self.stored), at("DELETE", STORED, self.stored)]
        served += [at("GET", f"{STORED}/input_items", self.stored), at("POST", f"{STORED}/cancel", self.stored)]
        if self.settings.short_paths:
            served += [replace(each, path=each.path[3:]) for each in served if each.path.startswith(SHORT)]
        served += [at("GET", "/v1/models", self.models), at("GET", "/v1/models/{name:path}", self.model)]
        served += [at("GET", "/version", version), *(at("POST", path, self.adapters) for path in ADAPTERS)]
        if self.settings.ollama_api:
            served += [at("POST", path, self.ask) for path in OLLAMA_ASKING]
            served += [at("GET", path, self.ollama_models) for path in ("/api/tags", "/api/ps")]
            served += [at("GET", "/api/version", ollama.version), at("GET", "/", ollama.is_running)]
        return [*served, *(each for each in self.probes() if each.access(self.settings) != "off")]


def router_app(router: Router, keys: KeyRing, lifespan: Any = None) -> Starlette:
    settings, endpoints = router.settings, router.endpoints()
    app = Starlette(routes=routes_of(endpoints), lifespan=lifespan)
    app.router.redirect_slashes = False
    add_middleware(
        app, settings, keys, endpoints, router.lifecycle, lambda: router.is_loaded, router.metrics, tracing=None
    )
    error_handlers.install(app, ollama_api=settings.ollama_api)
    return app


def as_json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def anthropic_card(model: dict[str, Any]) -> AnthropicModel:
    created = datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z")
    return AnthropicModel(id=model["id"], display_name=model["id"], created_at=created)


def ollama_card(model: dict[str, Any]) -> dict[str, Any]:
    name = model["id"] if ":" in model["id"] else model["id"] + LATEST
    return {
        "name": name,
        "model": name,
        "modified_at": ollama_time(datetime.fromtimestamp(model["created"], UTC)),
        "size": 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": OLLAMA_DETAILS,
    }
