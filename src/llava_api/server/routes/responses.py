"""``POST /v1/responses``, and ``GET`` and ``DELETE /v1/responses/{response_id}`` for stored responses."""

import time

from fastapi import Request
from fastapi.responses import Response

from llava_api.chat.response_question import given_items, response_question
from llava_api.chat.response_reply import ResponseReply, described
from llava_api.chat.response_store import ResponseStore, StoredResponse, items_json
from llava_api.errors import ErrorCode, InvalidRequest, NotFound
from llava_api.protocol.response_reply import EVENTS, DeletedResponse
from llava_api.protocol.response_reply import Response as ResponseObject
from llava_api.protocol.responses import ResponseRequest
from llava_api.server.answer import Context, json_response
from llava_api.server.body import COPIES
from llava_api.server.endpoint import Endpoint
from llava_api.server.state import exchange_of, services_of

NO_STORE = "This server stores no responses (it was started without --response-store-bytes): "
UNKNOWN = "There is no response of that id. The server may have replaced it with a newer one."


async def prepare(context: Context, wanted: ResponseRequest) -> ResponseReply:
    services, account, owner = context.services, context.account, context.key_name
    wanted.model = services.preparer.served_name(wanted.model)
    store = services.responses
    before = b"[]"
    if wanted.previous_response_id:
        before = earlier_response(store, wanted.previous_response_id, owner).conversation
    # The conversation costs as much memory as if the request had contained it.
    account.memory.take(COPIES * len(before))
    question = response_question(wanted, await store.read(before), services.model)
    spec = await services.preparer.prepare(question, context.reply_id("resp_"), account)
    keeping = store.keeps and wanted.store is not False
    conversation = [before, items_json(given_items(wanted))] if keeping else []
    account.memory.keep(spec.request.pixel_bytes + sum(map(len, conversation)))
    return ResponseReply(
        context.answers(spec),
        described(wanted, spec, int(time.time()), keeping),
        keep=lambda response: store.put(response, conversation, owner),
        streamed=bool(wanted.stream),
    )


def earlier_response(store: ResponseStore, response_id: str, owner: str) -> StoredResponse:
    """The response that ``previous_response_id`` names. Raises InvalidRequest."""
    found = store.get(response_id, owner)
    if found is None:
        message = UNKNOWN if store.keeps else f"{NO_STORE}send the earlier items in input instead."
        code = ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND if store.keeps else ErrorCode.UNSUPPORTED_PARAMETER
        raise InvalidRequest(message, param="previous_response_id", code=code)
    return found


async def get_response(request: Request) -> Response:
    return Response(stored_response(request).reply, media_type="application/json")


async def delete_response(request: Request) -> Response:
    stored_response(request)
    response_id = request.path_params["response_id"]
    services_of(request).responses.delete(response_id)
    return json_response(DeletedResponse(id=response_id))


def stored_response(request: Request) -> StoredResponse:
    """The response that the request's path names. Raises InvalidRequest and NotFound."""
    if request.query_params:
        name = next(iter(request.query_params))
        raise InvalidRequest("A stored response is always sent whole: leave the query out.", param=name[:64])
    store = services_of(request).responses
    found = store.get(request.path_params["response_id"], exchange_of(request.scope).key_name)
    if found is None:
        raise NotFound(UNKNOWN if store.keeps else f"{NO_STORE}there is none of that id.")
    return found


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/responses",
        prepare=prepare,
        operation_id="createResponse",
        summary="Ask about texts and images with OpenAI's Responses API",
        request=ResponseRequest,
        example={"input": "What can you do?"},
        reply=ResponseObject,
        events=EVENTS,
        short_path=True,
    ),
    Endpoint(
        "GET",
        "/v1/responses/{response_id}",
        get_response,
        operation_id="getResponse",
        summary="Get a stored response",
        reply=ResponseObject,
        short_path=True,
    ),
    Endpoint(
        "DELETE",
        "/v1/responses/{response_id}",
        delete_response,
        operation_id="deleteResponse",
        summary="Delete a stored response",
        reply=DeletedResponse,
        short_path=True,
    ),
)
