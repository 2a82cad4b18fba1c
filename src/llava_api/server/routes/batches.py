"""``/v1/batches``: create, list, get and cancel; on with --data-dir."""

from functools import partial
from time import time

from fastapi import Request
from fastapi.responses import Response

from llava_api.batch.runner import Runner
from llava_api.batch.store import Progress, StoredBatch
from llava_api.errors import InvalidRequest, NotFound
from llava_api.protocol import batches as wire
from llava_api.server.answer import Context, json_response
from llava_api.server.body import validated
from llava_api.server.endpoint import Endpoint
from llava_api.server.routes.files import store_of, stored
from llava_api.server.services import Services
from llava_api.server.state import exchange_of, services_of
from llava_api.storage.database import new_id

UNKNOWN = "You have no batch of that id."


async def create(context: Context, wanted: wire.BatchRequest) -> wire.Batch:
    services, owner = context.services, context.key_name
    found = await store_of(services).get(wanted.input_file_id, owner)
    if found is None:
        message = "You have no file of that id. It may have expired."
        raise NotFound(message, param="input_file_id")
    if found.purpose != "batch":
        message = f"The file has the purpose {found.purpose}: upload it with the purpose batch."
        raise InvalidRequest(message, param="input_file_id")
    now = int(time())
    batch = wire.Batch(
        id=new_id("batch_"),
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        created_at=now,
        expires_at=now + wire.WINDOW_SECONDS,
        metadata=wanted.metadata,
    )
    expires = wanted.output_expires_after
    progress = Progress(output_seconds=None if expires is None else expires.seconds)
    made = StoredBatch(owner, batch.model_copy(deep=True), progress)
    await runner_of(services).create(made, context.account.limits.max_open_batches)
    return batch


async def list_batches(request: Request) -> Response:
    services = services_of(request)
    query = validated(dict(request.query_params), wire.BatchListQuery, False)
    data, has_more = await runner_of(services).list(
        exchange_of(request.scope).key_name, query.after or None, query.limit
    )
    return json_response(wire.BatchList.of(data, has_more))


async def get_batch(request: Request) -> Response:
    runner, owner = runner_of(services_of(request)), exchange_of(request.scope).key_name
    found = await runner.get(request.path_params["batch_id"], owner)
    if found is None:
        raise NotFound(UNKNOWN, param="batch_id")
    return json_response(found)


async def cancel_batch(request: Request) -> Response:
    runner, owner = runner_of(services_of(request)), exchange_of(request.scope).key_name
    batch_id = request.path_params["batch_id"]
    if not await runner.cancel(batch_id, owner):
        found = await runner.get(batch_id, owner)
        if found is None:
            raise NotFound(UNKNOWN, param="batch_id")
        message = f"Cannot cancel a batch with status '{found.status}'."
        raise InvalidRequest(message, status=409)
    return await get_batch(request)


def runner_of(services: Services) -> Runner:
    # Without --data-dir there are no such endpoints.
    assert services.batches is not None
    return services.batches


PATH = "/v1/batches/{batch_id}"
endpoint = partial(Endpoint, access=stored, reply=wire.Batch)
EXAMPLE = {"input_file_id": "file-abc", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
ENDPOINTS = (
    endpoint(
        "POST",
        "/v1/batches",
        prepare=create,
        operation_id="createBatch",
        summary="Run a file of requests when the server has time for them",
        request=wire.BatchRequest,
        example=EXAMPLE,
        spends_tokens=False,
    ),
    endpoint(
        "GET",
        "/v1/batches",
        list_batches,
        operation_id="listBatches",
        summary="List your batches, the newest first",
        query=wire.BatchListQuery,
        reply=wire.BatchList,
    ),
    endpoint("GET", PATH, get_batch, operation_id="retrieveBatch", summary="Get one batch"),
    endpoint(
        "POST",
        f"{PATH}/cancel",
        cancel_batch,
        operation_id="cancelBatch",
        summary="Stop a batch and keep the answers that it has",
    ),
)
