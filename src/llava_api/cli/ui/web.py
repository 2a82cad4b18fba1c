"""The page as a web application: Gradio's, with uploads of our own before it and the gate around it.

Gradio would name a file by its content, so that two people with the same picture had the same file, and would keep it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from llava_api.cli.ui.answering import Answering
from llava_api.cli.ui.client import Api
from llava_api.cli.ui.conversation import PictureLimits, megabytes
from llava_api.cli.ui.gate import Gate
from llava_api.cli.ui.page import Page, mount
from llava_api.cli.ui.sessions import Sessions
from llava_api.cli.ui.uploads import NoRoom, Uploads

FORGET_EVERY_SECONDS = 30
ENVELOPE_BYTES = 100_000
"""Of a form around its files."""
PREVIEWS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
"""What is shown in the box before it is sent; anything else is not sent back as something that a browser would run."""


def create_web_app(api: Api, uploads: Uploads, limits: PictureLimits, hosts: Collection[str]) -> Gate:
    page = Page(Answering(api, uploads, limits), Sessions())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        forgetting = asyncio.create_task(forget_old(page, uploads))
        yield
        forgetting.cancel()
        with suppress(asyncio.CancelledError):
            await forgetting
        await api.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/gradio_api/upload")
    async def upload(request: Request) -> Response:
        return await save_files(request, uploads, limits)

    @app.get("/gradio_api/upload_progress")
    async def upload_progress() -> Response:
        # Uploads are told of when they are there.
        return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.get("/gradio_api/file={path:path}")
    async def preview(path: str) -> Response:
        found = uploads.find(path)
        if found is None:
            return PlainTextResponse("There is nothing here.", 404)
        kind = PREVIEWS.get(found.suffix, "application/octet-stream")
        return FileResponse(found, media_type=kind, headers={"Cache-Control": "no-store"})

    mount(app, page.blocks, limits.one_bytes)
    return Gate(app, hosts, uploads.find)


async def forget_old(page: Page, uploads: Uploads) -> None:
    while True:
        await asyncio.sleep(FORGET_EVERY_SECONDS)
        page.forget_closed()
        uploads.forget_old()


async def save_files(request: Request, uploads: Uploads, limits: PictureLimits) -> Response:
    """The files of a form; the answer is a list of their paths, as Gradio's page expects it."""
    try:
        with uploads.receiving() as came:
            return await save_received(request, uploads, limits, came)
    except ClientDisconnect:
        return Response(status_code=400)
    except NoRoom:
        return PlainTextResponse("Too many pictures are being added at once: try again in a minute.", 503)


async def save_received(
    request: Request, uploads: Uploads, limits: PictureLimits, came: Callable[[int], None]
) -> Response:
    """``came`` is told of all bytes. Raises NoRoom."""
    most = limits.all_bytes + ENVELOPE_BYTES

    async def counted() -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            came(len(chunk))
            if received > most:
                raise MultiPartException(f"The files are larger than {megabytes(limits.all_bytes)} together.")
            yield chunk

    try:
        form = await MultiPartParser(request.headers, counted(), max_files=limits.count, max_fields=10).parse()
    except (MultiPartException, KeyError) as error:
        message = error.message if isinstance(error, MultiPartException) else "This is no form with files."
        return PlainTextResponse(message, 413)
    try:
        saved: list[str] = []
        for file in form.getlist("files"):
            if isinstance(file, UploadFile):
                data = await file.read(limits.one_bytes + 1)
                if len(data) > limits.one_bytes:
                    return PlainTextResponse(f"The file is larger than {megabytes(limits.one_bytes)}.", 413)
                saved.append(str(uploads.save(file.filename or "", data)))
        return JSONResponse(saved)
    finally:
        await form.close()
