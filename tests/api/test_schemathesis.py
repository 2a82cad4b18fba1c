"""Valid and invalid requests, generated from our OpenAPI document, to a server with a scripted engine.

schemathesis sees to it that nothing is a server error, that no status and no content type is undeclared, that every
answer fits its schema (so every refusal has the one error shape), and that what the document forbids is refused.
"""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from llava_api.chat.model import open_model
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.batch_requests import start_batches
from llava_api.server.http_server import make_config
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.listening import listen
from llava_api.server.openapi import openapi_document
from llava_api.server.routes import ENDPOINTS
from llava_api.server.services import Services
from llava_api.settings import Settings
from tests.support.running_server import PromptServer
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint

EXAMPLES = 100
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server: schemathesis calls from threads and event loops of its own."""
    # Strict, so that a text for a number is refused, as the document says.
    folder = tmp_path_factory.mktemp("model")
    chosen = Settings(
        fetch_images=False,
        response_store_bytes=1_000_000,
        strict_fields=True,
        ollama_api=True,
        data_dir=str(folder / "data"),
    )
    model = open_model(str(write_checkpoint(folder / "model")), ("tiny",), chosen)
    services = Services(chosen, model, ScriptedEngine())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await start_batches(services, KeyRing(chosen), Lifecycle())
        yield
        await services.close()

    app = create_app(chosen, KeyRing(chosen), services, lifespan)
    listener = listen(Settings(port=0))
    # From here on a connection waits until the server accepts it.
    listener.listen()
    server = PromptServer(make_config(app, chosen))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


schema = schemathesis.openapi.from_dict(openapi_document(ENDPOINTS))
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_requests_are_answered_as_documented(case: schemathesis.Case, address: str) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        # With another name the answer is a 404, and the rest of the request is not validated.
        case.body["model"] = "tiny"
    # null means that a field is not given, even an unknown one, and so does an empty one in a query or a form, where a
    # list without entries is not even written. Such a request may be accepted.
    form = case.body if case.media_type == "multipart/form-data" else None
    lenient = has_null(case.body) or has_empty(case.query) or has_empty(form)
    checks = [check for check in CHECKS if check is not negative_data_rejection] if lenient else CHECKS
    case.call_and_validate(base_url=address, checks=checks)


def has_empty(fields: object) -> bool:
    """Or one of which the last value is empty, if it is given several times."""
    if not isinstance(fields, dict):
        return False
    last = (value[-1] if isinstance(value, list) and value else value for value in fields.values())
    return any(value in ("", {}, []) for value in last)


def has_null(body: object) -> bool:
    if isinstance(body, dict):
        return any(value is None or has_null(value) for value in body.values())
    return isinstance(body, list) and any(map(has_null, body))
