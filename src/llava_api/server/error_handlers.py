"""Renders every error in the shape of the path's own API, those of Starlette and unforeseen ones included."""

import logging
import math
from functools import partial

from fastapi import Request
from fastapi.responses import Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from llava_api.errors import INTERNAL, ApiError, ErrorCode, InvalidRequest, NotFound
from llava_api.server.dialects import OLLAMA, dialect_of, request_id_headers
from llava_api.server.state import exchange_of
from llava_api.telemetry.log_lines import cut
from llava_api.telemetry.record import current

log = logging.getLogger(__name__)
STORED = ("/v1/files", "/v1/batches")


def error_response(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """The answer to the current request, whose record notes the error."""
    record = current()
    record.note_error(error.code)
    return rendered(error, record.path, record.request_id, headers)


def rendered(error: ApiError, path: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    sent = dict(headers or {})
    if error.retry_after_seconds is not None:
        # The openai client reads the second one first.
        sent["retry-after"] = str(math.ceil(error.retry_after_seconds))
        sent["retry-after-ms"] = str(math.ceil(error.retry_after_seconds * 1000))
    if not error.clients_retry:
        sent["x-should-retry"] = "false"
    body = dialect_of(path).error.of(error, request_id).model_dump_json()
    return Response(body, status_code=error.status, media_type="application/json", headers=sent)


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception, *, ollama_api: bool, stores_files: bool) -> Response:
    """Starlette's own refusals: no such route, no such method."""
    assert isinstance(error, HTTPException)
    path = current().path
    dialect = dialect_of(path)
    advice = f"chat is at POST {dialect.chat}"
    if dialect is OLLAMA and not ollama_api:
        advice = "Ollama's API is switched on by --ollama-api"
    elif path.startswith(STORED) and not stores_files:
        advice = "files and batches are served by llava-api serve --data-dir, and by no router"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    if error.status_code == 404:
        return error_response(NotFound(f"There is nothing at this address; {advice}."))
    if error.status_code == 405:
        text = f"This address takes {headers.get('Allow', 'another method')}."
        return error_response(InvalidRequest(text, code=ErrorCode.METHOD_NOT_ALLOWED, status=405), headers)
    refusal = InvalidRequest("The request could not be understood.", status=error.status_code)
    return error_response(refusal, headers)


async def on_unforeseen(request: Request, error: Exception) -> Response:
    path, request_id = request.scope["path"], exchange_of(request.scope).request_id
    log.error("unforeseen error on %r", cut(path), exc_info=error)
    refusal = ApiError(INTERNAL, code=ErrorCode.INTERNAL_ERROR)
    # Starlette answers these outside all middleware, so the header that INTERNAL speaks of is set here.
    return rendered(refusal, path, request_id, request_id_headers(path, request_id))


def install(app: Starlette, *, ollama_api: bool = False, stores_files: bool = False) -> None:
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(
        HTTPException, partial(on_http_exception, ollama_api=ollama_api, stores_files=stores_files)
    )
    app.add_exception_handler(Exception, on_unforeseen)
