"""The only place where the application's state and a request's state are read and written."""

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.types import Scope

from llava_api.server.exchange import Exchange
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.services import Services
from llava_api.telemetry.metrics import Metrics
from llava_api.telemetry.tracing import Tracing


class AppState(State):
    """What all requests of an application share."""

    services: Services | None
    """None until the model is loaded, and in a router."""
    loaded: bool
    """Whether requests are taken."""
    lifecycle: Lifecycle
    metrics: Metrics
    tracing: Tracing | None


def set_state(app: Starlette, state: AppState) -> None:
    app.state = state


def state_of(app: Starlette) -> AppState:
    assert isinstance(app.state, AppState)
    return app.state


def services_of(request: Request) -> Services:
    """For routes that are only reached while the model is loaded (``middleware/availability.py``)."""
    services: Services | None = request.scope["state"].get("services") or state_of(request.app).services
    assert services is not None
    return services


def begin_batch_request(scope: Scope, services: Services, owner: str) -> None:
    """``services`` are the request's own."""
    scope["state"] = {"services": services, "owner": owner}


def owner_of_batch(scope: Scope) -> str:
    found: str = scope["state"]["owner"]
    return found


def begin_exchange(scope: Scope, exchange: Exchange) -> None:
    scope.setdefault("state", {})["exchange"] = exchange


def exchange_of(scope: Scope) -> Exchange:
    found: Exchange = scope["state"]["exchange"]
    return found
