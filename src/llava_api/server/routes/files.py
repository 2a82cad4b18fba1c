"""``/v1/files``: upload, list, get, read and delete; on with --data-dir."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Literal

from fastapi import Request
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from llava_api.errors import BadImage, NotFound, UnsupportedEncoding
from llava_api.limits.account import Account
from llava_api.protocol import files as wire
from llava_api.server.answer import CLIENT_CLOSED_REQUEST, json_response
from llava_api.server.body import validated
from llava_api.server.endpoint import Endpoint
from llava_api.server.form import FORM_BYTES, Form
from llava_api.server.producer import Deadline
from llava_api.server.services import Services
from llava_api.server.state import exchange_of, services_of
from llava_api.settings import Settings
from llava_api.storage.files import WRITE_BYTES, Description, FileStore, Quota, StoredFile

UPLOAD_BYTES = 3 * WRITE_BYTES
"""Memory of an upload: what waits for the disk, and what is written to it."""


async def create_file(request: Request) -> Response:
    exchange, services = exchange_of(request.scope), services_of(request)
    settings = services.settings
    account = await exchange.open_account(services.limiter, services.memory, spends_tokens=False)
    form = Form(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedEncoding("Send a file without a Content-Encoding.")
    announced = request.headers.get("content-length", "0")
    expected = max(0, int(announced) - FORM_BYTES) if announced.isdigit() else 0
    account.memory.take(UPLOAD_BYTES)
    try:
        async with Deadline(settings.request_timeout_seconds).enforced():
            made = await store_of(services).create(
                exchange.key_name,
                form.file_bytes(request.stream()),
                partial(describe, services, account, form),
                max_bytes=settings.max_file_bytes,
                expected_bytes=expected,
                quota=Quota(account.limits.max_stored_bytes, account.limits.max_stored_files),
            )
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return json_response(file_object(made))


def describe(services: Services, account: Account, form: Form, path: Path) -> Description:
    """Judge an upload that is at ``path``. Blocks. Raises InvalidRequest, its subclasses, and Busy."""
    wanted = validated(form.data(), wire.FileForm, services.settings.strict_fields)
    if wanted.purpose in wire.IMAGE_PURPOSES:
        try:
            services.preparer.images.check_stored(path, account.memory.take)
        except BadImage as error:
            raise error.at("file") from error
    lifetime = services.settings.file_lifetime_seconds or None
    if wanted.expires_after is not None:
        lifetime = wanted.expires_after.seconds
    return Description(wanted.purpose, wanted.file, lifetime)


async def list_files(request: Request) -> Response:
    services = services_of(request)
    query = validated(dict(request.query_params), wire.FileListQuery, False)
    found, has_more = await store_of(services).list(
        exchange_of(request.scope).key_name,
        purpose=query.purpose or None,
        after=query.after or None,
        order=query.order,
        limit=query.limit,
    )

    def page() -> bytes:
        return wire.FileList.of([file_object(file) for file in found], has_more).model_dump_json().encode()

    # Ten thousand files take a tenth of a second.
    return Response(await asyncio.to_thread(page), media_type="application/json")


async def get_file(request: Request) -> Response:
    return json_response(file_object(await named_file(request)))


async def get_content(request: Request) -> Response:
    found = await named_file(request)
    path = store_of(services_of(request)).path(found.id)
    try:
        status = await asyncio.to_thread(path.stat)
    except FileNotFoundError as error:
        # It has been deleted since it was looked up.
        raise unknown() from error
    # Never shown by a browser, whatever was uploaded.
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(
        path, media_type="application/octet-stream", headers=headers, filename=found.filename, stat_result=status
    )


async def delete_file(request: Request) -> Response:
    file_id = request.path_params["file_id"]
    if not await store_of(services_of(request)).delete(file_id, exchange_of(request.scope).key_name):
        raise unknown()
    return json_response(wire.DeletedFile(id=file_id))


async def named_file(request: Request) -> StoredFile:
    """The file that the request's path names. Raises NotFound."""
    store = store_of(services_of(request))
    found = await store.get(request.path_params["file_id"], exchange_of(request.scope).key_name)
    if found is None:
        raise unknown()
    return found


def unknown() -> NotFound:
    return NotFound("You have no file of that id. It may have expired.", param="file_id")


def file_object(file: StoredFile) -> wire.FileObject:
    return wire.FileObject.model_validate(file, from_attributes=True)


def store_of(services: Services) -> FileStore:
    # Without --data-dir there are no such endpoints.
    assert services.data is not None
    return services.data.files


def stored(settings: Settings) -> Literal["key", "off"]:
    """The access of endpoints that need --data-dir."""
    return "key" if settings.data_dir is not None else "off"


PATH = "/v1/files/{file_id}"
endpoint = partial(Endpoint, access=stored)
ENDPOINTS = (
    endpoint(
        "POST",
        "/v1/files",
        create_file,
        operation_id="createFile",
        summary="Upload a file",
        form=wire.FileForm,
        reply=wire.FileObject,
    ),
    endpoint(
        "GET",
        "/v1/files",
        list_files,
        operation_id="listFiles",
        summary="List your files",
        query=wire.FileListQuery,
        reply=wire.FileList,
    ),
    endpoint("GET", PATH, get_file, operation_id="retrieveFile", summary="Get one file", reply=wire.FileObject),
    endpoint(
        "GET",
        f"{PATH}/content",
        get_content,
        operation_id="downloadFile",
        summary="Read what is in a file",
        reply=wire.FileContent,
    ),
    endpoint("DELETE", PATH, delete_file, operation_id="deleteFile", summary="Delete a file", reply=wire.DeletedFile),
)
