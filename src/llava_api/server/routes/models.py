"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.protocol.models import ModelCard, ModelList
from llava_api.server.exchange import json_response
from llava_api.server.services import Services

router = APIRouter(prefix="/v1/models")


def card(services: Services, name: str) -> ModelCard:
    """Raises ModelNotFound."""
    adapter = services.preparer.find_adapter(name)
    parent = None if adapter is None else services.model.names[0]
    return ModelCard(id=name, created=services.started, max_model_len=services.engine.max_model_len, parent=parent)


@router.get("")
async def list_models(request: Request) -> Response:
    services: Services = request.app.state.services
    listed = ModelList(data=[card(services, name) for name in services.model.served_names()])
    return json_response(listed)


@router.get("/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    services: Services = request.app.state.services
    return json_response(card(services, name))
