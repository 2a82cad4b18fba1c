"""The page as a web application: Gradio's, with our own uploads before it and the request filter around it.

Gradio would name a file by its content, so that two people with the same image had the same file, and would keep it.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import Message

from llava_api.cli.api_client import ApiClient
from llava_api.cli.ui.answering import Answering
from llava_api.cli.ui.open_pages import ImageLimits, OpenPages
from llava_api.cli.ui.page import Page, mount
from llava_api.cli.ui.request_filter import RequestFilter
from llava_api.cli.ui.uploads import NoRoom, Uploads
from llava_api.units import readable_size

FORGET_EVERY_SECONDS = 30
FORM_BYTES = 100_000
"""For a form besides its files."""
PREVIEW_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
"""Images that the box shows before they are sent. Other files must not come back as something that a browser runs."""


def create_web_app(api: ApiClient, uploads: Uploads, limits: ImageLimits, hosts: Collection[str]) -> RequestFilter:
    page = Page(Answering(api, uploads, limits), OpenPages())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        forgetting = asyncio.create_task(forget_old(page, uploads))
        yield
        forgetting.cancel()
        with suppress(asyncio.CancelledError):
            await forgetting
        await api.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/gradio_api/upload")
    async def upload(request: Request) -> Response:
        return await save_files(request, uploads, limits)

    @app.get("/gradio_api/upload_progress")
    async def upload_progress() -> Response:
        # Gradio's page asks for it and waits for its end.
        return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.get("/gradio_api/file={path:path}")
    async def preview(path: str) -> Response:
        found = uploads.find(path)
        if found is None:
            return PlainTextResponse("There is nothing here.", 404)
        media_type = PREVIEW_TYPES.get(found.suffix, "application/octet-stream")
        return FileResponse(found, media_type=media_type, headers={"Cache-Control": "no-store"})

    mount(app, page.blocks, limits.one_bytes)
    return RequestFilter(app, hosts, uploads.find)


async def forget_old(page: Page, uploads: Uploads) -> None:
    while True:
        await asyncio.sleep(FORGET_EVERY_SECONDS)
        page.forget_closed()
        uploads.forget_old()


async def save_files(request: Request, uploads: Uploads, limits: ImageLimits) -> Response:
    """Save the files of a form and answer with a list of their paths, as Gradio's page expects."""
    received = 0
    try:
        with uploads.receiving() as count_bytes:

            async def receive() -> Message:
                nonlocal received
                message = await request.receive()
                size = len(message.get("body", b""))
                received += size
                count_bytes(size)
                if received > limits.all_bytes + FORM_BYTES:
                    raise HTTPException(413, f"The files are larger than {readable_size(limits.all_bytes)} together.")
                return message

            saved: list[str] = []
            async with Request(request.scope, receive).form(max_files=limits.count, max_fields=10) as form:
                for file in form.getlist("files"):
                    if isinstance(file, UploadFile):
                        data = await file.read(limits.one_bytes + 1)
                        if len(data) > limits.one_bytes:
                            raise HTTPException(413, f"The file is larger than {readable_size(limits.one_bytes)}.")
                        saved.append(str(uploads.save(file.filename or "", data)))
            return JSONResponse(saved)
    except ClientDisconnect:
        return Response(status_code=400)
    except NoRoom:
        return PlainTextResponse("Too many images are being added at once: try again in a minute.", 503)
    except HTTPException as error:
        return PlainTextResponse(error.detail, error.status_code)
