"""``GET /v1/models``, ``GET /v1/models/{model}`` and ``GET /version``."""

from collections.abc import Iterable
from datetime import UTC, datetime

from fastapi import Request
from fastapi.responses import Response

from llava_api.protocol.anthropic_reply import AnthropicModel, AnthropicModelList
from llava_api.protocol.server_info import ModelCard, ModelList, ModelPermission, Version
from llava_api.server.answer import json_response
from llava_api.server.endpoint import Endpoint
from llava_api.server.middleware.path import single_slashes
from llava_api.server.services import Services
from llava_api.server.state import services_of
from llava_api.versions import all_versions

# Read when the module is imported, because this opens files.
VERSION = Version.model_validate(all_versions())


def card(services: Services, name: str) -> ModelCard:
    """``name``: a served one."""
    is_adapter, first = services.preparer.find_adapter(name) is not None, services.model.names[0]
    room = services.engine.max_model_len
    return ModelCard(
        id=name,
        created=services.started,
        root=name if is_adapter else first,
        parent=first if is_adapter else None,
        max_model_len=room,
        context_length=room,
        permission=[ModelPermission(id=f"modelperm-{name}", created=services.started)],
    )


def anthropic_models(models: Iterable[tuple[str, float]]) -> AnthropicModelList:
    """``models``: names, and the Unix times at which they were started."""
    data = [
        AnthropicModel(
            id=name, display_name=name, created_at=f"{datetime.fromtimestamp(started, UTC):%Y-%m-%dT%H:%M:%SZ}"
        )
        for name, started in models
    ]
    ends = (data[0].id, data[-1].id) if data else ("", "")
    return AnthropicModelList(data=data, first_id=ends[0], last_id=ends[1])


def for_anthropic(request: Request) -> bool:
    """Whether the caller is a client of Anthropic's API, which has this address too."""
    return "anthropic-version" in request.headers


async def list_models(request: Request) -> Response:
    services = services_of(request)
    names = services.model.served_names()
    if for_anthropic(request):
        return json_response(anthropic_models((name, services.started) for name in names))
    return json_response(ModelList(data=[card(services, name) for name in names]))


async def get_model(request: Request) -> Response:
    services, asked = services_of(request), request.path_params["name"]
    # A path has no double slashes, and a model's name may begin with one: a folder's is its path.
    names = {single_slashes(f"/{name}")[1:]: name for name in services.model.served_names()}
    found = services.preparer.served_name(names.get(asked, asked))
    if for_anthropic(request):
        return json_response(anthropic_models([(found, services.started)]).data[0])
    return json_response(card(services, found))


async def version(_: Request) -> Response:
    return json_response(VERSION)


ENDPOINTS = (
    Endpoint(
        "GET", "/v1/models", list_models, operation_id="listModels", summary="List the served models", reply=ModelList
    ),
    Endpoint(
        "GET",
        "/v1/models/{model}",
        get_model,
        # A model's name may have slashes.
        route="/v1/models/{name:path}",
        operation_id="retrieveModel",
        summary="Get one served model",
        reply=ModelCard,
    ),
    Endpoint(
        "GET",
        # vLLM's server has this address too.
        "/version",
        version,
        operation_id="version",
        summary="Versions of the server and its main packages",
        reply=Version,
    ),
)
