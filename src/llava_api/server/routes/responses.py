"""``/v1/responses``, and the addresses below it for stored responses."""

import json
from collections import Counter
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from llava_api.chat.question import Question
from llava_api.chat.response_question import response_question
from llava_api.chat.response_reply import ResponseReply, described
from llava_api.chat.response_store import ResponseStore, StoredItem, StoredResponse, json_list, size_of, stored
from llava_api.errors import ErrorCode, InvalidRequest, NotFound
from llava_api.protocol.response_reply import EVENTS, DeletedResponse, InputItemList, InputTokens
from llava_api.protocol.response_reply import Response as ResponseObject
from llava_api.protocol.responses import InputItem, ItemReference, MessageItem, ResponseRequest, SkippedItem
from llava_api.server.answer import Context, json_response
from llava_api.server.body import COPIES, MAX_OBJECTS, objects_in
from llava_api.server.endpoint import Endpoint
from llava_api.server.state import exchange_of, services_of

NO_STORE = "This server stores no responses (it was started without --response-store-bytes): "
UNKNOWN = "There is no response of that id. The server may have replaced it with a newer one."
UNKNOWN_ITEM = "There is no stored item of that id: the server may have dropped its response. Send the item itself."
MAX_PAGE = 100


async def prepare(context: Context, wanted: ResponseRequest) -> ResponseReply:
    services, account, owner = context.services, context.account, context.key_name
    earlier, given, question = await read(context, wanted)
    spec = await services.preparer.prepare(question, context.reply_id("resp_"), account)
    store = services.responses
    keeping = store.keeps and wanted.store is not False
    conversation = earlier + stored(earlier, given) if keeping else ()
    account.memory.keep(spec.held_bytes + size_of(conversation))
    return ResponseReply(
        context.answers(spec),
        described(wanted, spec, keeping),
        keep=lambda response: store.put(response, conversation, owner),
        streamed=bool(wanted.stream),
    )


async def count_tokens(context: Context, wanted: ResponseRequest) -> InputTokens:
    _, _, question = await read(context, wanted)
    laid_out = await context.services.preparer.lay_out(question.conversation, context.account, "input")
    return InputTokens(input_tokens=len(laid_out.prompt.token_ids))


async def read(
    context: Context, wanted: ResponseRequest
) -> tuple[tuple[StoredItem, ...], Sequence[InputItem], Question]:
    """The items of previous_response_id, those of the request, and both as a question. Raises InvalidRequest."""
    services, owner = context.services, context.key_name
    wanted.model = services.preparer.served_name(wanted.model)
    store = services.responses
    earlier: tuple[StoredItem, ...] = ()
    if wanted.previous_response_id:
        earlier = earlier_response(store, wanted.previous_response_id, owner).conversation
    given: list[InputItem] = (
        [MessageItem(role="user", content=wanted.input)] if isinstance(wanted.input, str) else [*(wanted.input or ())]
    )
    if not given and not earlier and wanted.instructions is None:
        absent = "Missing required parameter: 'input'."
        raise InvalidRequest(absent, param="input", code=ErrorCode.MISSING_REQUIRED_PARAMETER)
    referenced = {
        place: referenced_item(store, item.id, owner, f"input[{place}].id")
        for place, item in enumerate(given)
        if isinstance(item, ItemReference)
    }
    kept = [*earlier, *referenced.values()]
    # They cost as much memory as if the request had contained them.
    context.account.memory.take(COPIES * size_of(kept))
    check_objects(kept)
    parsed = await store.read(kept)
    for place, item in zip(referenced, parsed[len(earlier) :], strict=True):
        given[place] = item
    question = response_question(wanted, parsed[: len(earlier)], given, services.model)
    return earlier, [item for item in given if not isinstance(item, SkippedItem)], question


def check_objects(items: Sequence[StoredItem]) -> None:
    """Raises InvalidRequest for more than a body may have: a reference of a few bytes may name thousands."""
    if sum(times * objects_in(item.json) for item, times in Counter(items).items()) > MAX_OBJECTS:
        message = "The conversation has too many parts: refer to fewer items, or send shorter ones."
        raise InvalidRequest(message, param="input")


def earlier_response(store: ResponseStore, response_id: str, owner: str) -> StoredResponse:
    """The response that ``previous_response_id`` names. Raises InvalidRequest."""
    found = store.get(response_id, owner)
    if found is None:
        message = f"{UNKNOWN} Send" if store.keeps else f"{NO_STORE}send"
        code = ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND if store.keeps else ErrorCode.UNSUPPORTED_PARAMETER
        raise InvalidRequest(f"{message} the earlier items in input instead.", param="previous_response_id", code=code)
    return found


def referenced_item(store: ResponseStore, item_id: str, owner: str, param: str) -> StoredItem:
    """The item that an ``item_reference`` names. Raises InvalidRequest."""
    found = store.find_item(item_id, owner)
    if found is None and store.keeps:
        raise NotFound(UNKNOWN_ITEM, param=param)
    if found is None:
        message = f"{NO_STORE}have your client send the item itself, as with store: false."
        raise InvalidRequest(message, param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    return found


async def get_response(request: Request) -> Response:
    found = stored_response(request)
    if request.query_params.get("stream", "").lower() in ("true", "1"):
        raise InvalidRequest(
            "A stored response is complete and is not streamed again: leave stream out.", param="stream"
        )
    return Response(found.reply, media_type="application/json")


async def delete_response(request: Request) -> Response:
    stored_response(request)
    response_id = id_in_path(request)
    services_of(request).responses.delete(response_id)
    return json_response(DeletedResponse(id=response_id))


async def cancel_response(request: Request) -> Response:
    stored_response(request)
    # In OpenAI's words.
    raise InvalidRequest("Cannot cancel a synchronous response.")


async def list_input_items(request: Request) -> Response:
    items = stored_response(request).given
    query = request.query_params
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': it must be 'asc' or 'desc'.", param="order")
    if limit not in map(str, range(1, MAX_PAGE + 1)):
        raise InvalidRequest(f"Invalid value for 'limit': it must be 1 to {MAX_PAGE}.", param="limit")
    if order == "desc":
        items = items[::-1]
    ids = [item.id for item in items]
    for name in query.keys() & {"after", "before"}:
        if query[name] not in ids:
            raise InvalidRequest(f"Invalid value for '{name}': the response has no input item of that id.", param=name)
    start = ids.index(query["after"]) + 1 if "after" in query else 0
    end = ids.index(query["before"]) if "before" in query else len(ids)
    page = items[start:end][: int(limit)]
    ends = {
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": start + len(page) < end,
    }
    # The items are JSON already.
    body = b'{"object":"list","data":' + json_list(page) + b"," + json.dumps(ends).encode()[1:]
    return Response(body, media_type="application/json")


def id_in_path(request: Request) -> str:
    return f"resp_{request.path_params['number']}"


def stored_response(request: Request) -> StoredResponse:
    """The response that the request's path names. Raises NotFound."""
    store = services_of(request).responses
    found = store.get(id_in_path(request), exchange_of(request.scope).key_name)
    if found is None:
        raise NotFound(UNKNOWN if store.keeps else f"{NO_STORE}there is none of that id.")
    return found


EXAMPLE = {"input": "What can you do?"}
PATH, ROUTE = "/v1/responses/{response_id}", "/v1/responses/resp_{number}"
"""Other addresses below /v1/responses do not exist, whatever the method."""

ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/responses",
        prepare=prepare,
        operation_id="createResponse",
        summary="Ask about texts and images with OpenAI's Responses API",
        request=ResponseRequest,
        example=EXAMPLE,
        reply=ResponseObject,
        events=EVENTS,
        short_path=True,
    ),
    Endpoint(
        "POST",
        "/v1/responses/input_tokens",
        prepare=count_tokens,
        operation_id="countInputTokens",
        summary="Count the tokens of a response's prompt, images included, without asking the engine",
        request=ResponseRequest,
        example=EXAMPLE,
        reply=InputTokens,
        spends_tokens=False,
        short_path=True,
    ),
    Endpoint(
        "GET",
        PATH,
        get_response,
        route=ROUTE,
        operation_id="getResponse",
        summary="Get a stored response",
        reply=ResponseObject,
        short_path=True,
    ),
    Endpoint(
        "DELETE",
        PATH,
        delete_response,
        route=ROUTE,
        operation_id="deleteResponse",
        summary="Delete a stored response",
        reply=DeletedResponse,
        short_path=True,
    ),
    Endpoint(
        "GET",
        f"{PATH}/input_items",
        list_input_items,
        route=f"{ROUTE}/input_items",
        operation_id="listInputItems",
        summary="List the items of the conversation before a stored response, the newest first",
        reply=InputItemList,
        short_path=True,
    ),
    Endpoint(
        "POST",
        f"{PATH}/cancel",
        cancel_response,
        route=f"{ROUTE}/cancel",
        operation_id="cancelResponse",
        summary="Refused, since no response is generated in the background",
        reply=ResponseObject,
        short_path=True,
    ),
)
