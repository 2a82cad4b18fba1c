"""Ollama's API, with ``--ollama-api``: ``/api/chat``, ``/api/generate``, ``/api/tags`` and others, and ``/``."""

import hashlib
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response

from llava_api.chat.ollama_question import LATEST, chat_question, generate_question, served_name
from llava_api.chat.ollama_reply import Line, OllamaReply, line_of, ollama_time
from llava_api.chat.question import Question
from llava_api.protocol import ollama as wire
from llava_api.protocol import ollama_reply as reply
from llava_api.server.answer import Context, json_response
from llava_api.server.endpoint import Endpoint
from llava_api.server.ndjson import LineStream
from llava_api.server.services import Services
from llava_api.server.state import services_of

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is."""
NEVER = "2318-01-01T00:00:00Z"


def name_model(services: Services, wanted: wire.OllamaRequest) -> None:
    """Put a served name in the place of another. Raises InvalidRequest and NotFound."""
    short = served_name(wanted.model, services.model)
    found = services.preparer.served_name(short)
    if found != short:
        wanted.model = found


async def chat(context: Context, wanted: wire.OllamaChatRequest) -> OllamaReply | Line:
    name_model(context.services, wanted)
    if not wanted.messages:
        return unasked(wanted, chat=True)
    return await ask(context, chat_question(wanted, context.services.model), wanted, chat=True)


async def generate(context: Context, wanted: wire.OllamaGenerateRequest) -> OllamaReply | Line:
    name_model(context.services, wanted)
    if not wanted.prompt and not wanted.images:
        return unasked(wanted, chat=False)
    return await ask(context, generate_question(wanted, context.services.model), wanted, chat=False)


def unasked(wanted: wire.OllamaRequest, chat: bool) -> Line:
    """The reply to a request that only loads or unloads the model, which stays loaded here."""
    unloads = wanted.keep_alive in (0, "0", "0s", "0m")
    return line_of(wanted.model, chat, done=True, done_reason="unload" if unloads else "load")


async def ask(context: Context, question: Question, wanted: wire.OllamaRequest, chat: bool) -> OllamaReply:
    services, account = context.services, context.account
    spec = await services.preparer.prepare(question, context.reply_id("ollama-"), account)
    account.memory.keep(spec.held_bytes)
    answers = context.answers(spec)
    return OllamaReply(answers, wanted.model, chat, wanted.stream)


async def tags(request: Request) -> Response:
    services = services_of(request)
    models = [reply.OllamaModel(**described(services, name)) for name in services.model.served_names()]
    return json_response(reply.OllamaModelList(models=models))


async def running(request: Request) -> Response:
    services = services_of(request)
    room = services.engine.max_model_len
    found = [described(services, name) for name in services.model.served_names()]
    models = [
        reply.OllamaRunningModel(**each, expires_at=NEVER, size_vram=each["size"], context_length=room)
        for each in found
    ]
    return json_response(reply.OllamaRunningList(models=models))


async def show(context: Context, wanted: wire.OllamaShowRequest) -> reply.OllamaShownModel:
    services = context.services
    name = services.preparer.served_name(served_name(wanted.model or wanted.name, services.model))
    details = details_of(services, name)
    family = details.family
    return reply.OllamaShownModel(
        details=details,
        model_info={
            "general.architecture": family,
            "general.basename": name,
            f"{family}.context_length": services.engine.max_model_len,
        },
        capabilities=["completion", "vision", "tools"],
        modified_at=ollama_time(datetime.fromtimestamp(services.started, UTC)),
    )


def described(services: Services, name: str) -> dict[str, Any]:
    details = details_of(services, name)
    return model_fields(name, services.started, services.checkpoint_bytes, services.fingerprint, details)


def model_fields(
    name: str, started: float, size: int, fingerprint: str, details: reply.OllamaDetails
) -> dict[str, Any]:
    """Fields of ``OllamaModel``. Clients look for names with a tag, which they add themselves."""
    tagged = name if ":" in name else name + LATEST
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": ollama_time(datetime.fromtimestamp(started, UTC)),
        "size": size,
        "digest": hashlib.sha256(f"{fingerprint} {name}".encode()).hexdigest(),
        "details": details,
    }


def details_of(services: Services, name: str) -> reply.OllamaDetails:
    model = services.model
    family = model.checkpoint.text_model_type
    return reply.OllamaDetails(
        parent_model="" if name in model.names else model.names[0],
        family=family,
        families=[family, "clip"],
        parameter_size=short_count(model.parameters),
        quantization_level=model.checkpoint.quantization or model.checkpoint.stored_dtype or "",
    )


def short_count(parameters: int | None) -> str:
    """As Ollama writes numbers of parameters."""
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


async def version(_: Request) -> Response:
    return json_response(reply.OllamaVersion(version=API_VERSION))


async def is_running(_: Request) -> Response:
    return PlainTextResponse("Ollama is running")


ollama_endpoint = partial(Endpoint, access=lambda settings: "key" if settings.ollama_api else "off")
asking = partial(ollama_endpoint, "POST", stream=LineStream)
ENDPOINTS = (
    asking(
        "/api/chat",
        prepare=chat,
        operation_id="ollamaChat",
        summary="Ask about texts and images with Ollama's API (with --ollama-api)",
        request=wire.OllamaChatRequest,
        example={"messages": [{"role": "user", "content": "What can you do?"}], "stream": False},
        reply=reply.OllamaChatReply,
        events=(reply.OllamaChatReply, reply.OllamaErrorReply),
    ),
    asking(
        "/api/generate",
        prepare=generate,
        operation_id="ollamaGenerate",
        summary="Ask one question about texts and images with Ollama's API (with --ollama-api)",
        request=wire.OllamaGenerateRequest,
        example={"prompt": "What can you do?", "stream": False},
        reply=reply.OllamaGenerateReply,
        events=(reply.OllamaGenerateReply, reply.OllamaErrorReply),
    ),
    asking(
        "/api/show",
        prepare=show,
        operation_id="ollamaShow",
        summary="Get one served model from Ollama's API (with --ollama-api)",
        request=wire.OllamaShowRequest,
        reply=reply.OllamaShownModel,
        spends_tokens=False,
    ),
    ollama_endpoint(
        "GET",
        "/api/tags",
        tags,
        operation_id="ollamaTags",
        summary="List the served models in Ollama's API (with --ollama-api)",
        reply=reply.OllamaModelList,
    ),
    ollama_endpoint(
        "GET",
        "/api/ps",
        running,
        operation_id="ollamaPs",
        summary="List the loaded models in Ollama's API, which are the served ones (with --ollama-api)",
        reply=reply.OllamaRunningList,
    ),
    ollama_endpoint(
        "GET",
        "/api/version",
        version,
        operation_id="ollamaVersion",
        summary="The version of Ollama whose API this is (with --ollama-api)",
        reply=reply.OllamaVersion,
    ),
    ollama_endpoint("GET", "/", is_running),
)
