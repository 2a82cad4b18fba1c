"""``/v1/files``: the openai client's calls, images that requests name by id, two keys, quotas and enemies."""

import asyncio
import base64
import errno
import io
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from fastapi import FastAPI
from openai import AsyncOpenAI

from llava_api.server.form import FORM_BYTES
from llava_api.storage import files as storage
from llava_api.storage.files import FileStore
from tests.api.test_authentication import KEY, OTHER, WITH
from tests.api.test_chat import CHAT, RED
from tests.support.image_files import png_chunk
from tests.support.running_server import Connection, RunningServer, post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

FILES = "/v1/files"
LINES = b'{"custom_id": "1"}\n'
PNG = base64.b64decode(RED.partition(",")[2])
BEN = {"authorization": f"Bearer {OTHER}"}
BOUNDARY = "----boundary"
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture
def limits() -> str:
    return ""


@pytest.fixture
def settings_made(tmp_path: Path, limits: str) -> dict[str, Any]:
    (tmp_path / "keys").write_text(f"anne={KEY}\nben={OTHER}\n")
    (tmp_path / "limits.toml").write_text(limits)
    return {
        "api_key_file": [str(tmp_path / "keys")],
        "key_limits_file": str(tmp_path / "limits.toml"),
        "data_dir": str(tmp_path / "data"),
        "max_file_bytes": 3_000_000,
        "min_free_disk_bytes": 0,
        "response_store_bytes": 100_000,
        "body_timeout_seconds": 0.5,
        "max_body_bytes": 50_000,
    }


@pytest_asyncio.fixture
async def anne(client: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=KEY, base_url="http://test/v1", http_client=client, max_retries=0) as made:
        yield made


@pytest_asyncio.fixture
async def running(app: FastAPI) -> AsyncIterator[RunningServer]:
    async with serve_app(app) as made:
        yield made


@pytest.fixture
def store(app: FastAPI) -> FileStore:
    found: FileStore = app.state.services.data.files
    return found


def on_disk(store: FileStore) -> list[str]:
    return sorted(os.listdir(store.folder))


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    shown = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return f"--{BOUNDARY}\r\nContent-Disposition: {shown}\r\n\r\n".encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def upload(connection: Connection | RunningServer, form: bytes, *headers: str, length: int | None = None) -> Any:
    authorization = f"Authorization: Bearer {KEY}"
    return await connection.ask(post(FILES, form, FORM, authorization, *headers, length=length))


class TestTheClient:
    async def test_a_file_from_its_upload_to_its_end(self, anne: AsyncOpenAI, store: FileStore) -> None:
        made = await anne.files.create(file=("in.jsonl", LINES), purpose="batch")
        assert made.id.startswith("file-")
        assert (made.object, made.bytes, made.filename) == ("file", len(LINES), "in.jsonl")
        assert (made.purpose, made.status) == ("batch", "processed")
        assert made.expires_at == made.created_at + 2_592_000
        assert await anne.files.retrieve(made.id) == made
        assert (await anne.files.content(made.id)).content == LINES
        assert [file async for file in anne.files.list()] == [made]
        gone = await anne.files.delete(made.id)
        assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
        for call in (anne.files.retrieve, anne.files.content, anne.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(made.id)
        assert on_disk(store) == []

    async def test_megabytes_come_back_as_they_went(self, anne: AsyncOpenAI) -> None:
        data = os.urandom(2_900_000)
        made = await anne.files.create(file=io.BytesIO(data), purpose="batch")
        assert (made.bytes, made.filename) == (len(data), "upload")
        assert (await anne.files.content(made.id)).content == data

    async def test_a_part_of_a_file(self, anne: AsyncOpenAI, client: httpx.AsyncClient) -> None:
        made = await anne.files.create(file=("in.jsonl", LINES), purpose="batch")
        reply = await client.get(f"{FILES}/{made.id}/content", headers={**WITH, "range": "bytes=1-4"})
        assert (reply.status_code, reply.content) == (206, LINES[1:5])
        head = await client.head(f"{FILES}/{made.id}/content", headers=WITH)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(LINES)))

    async def test_it_expires_when_its_upload_says(self, anne: AsyncOpenAI) -> None:
        after: Any = {"anchor": "created_at", "seconds": 3600}
        made = await anne.files.create(file=("a", LINES), purpose="batch", expires_after=after)
        assert made.expires_at == made.created_at + 3600
        for wrong in ({"anchor": "created_at", "seconds": 3599}, {"anchor": "now", "seconds": 3600}, {"seconds": 3600}):
            with pytest.raises(openai.BadRequestError) as refused:
                await anne.files.create(file=("a", LINES), purpose="batch", expires_after=wrong)  # type: ignore[arg-type]
            assert str(refused.value.param).startswith("expires_after.")

    async def test_pages(self, anne: AsyncOpenAI) -> None:
        made = []
        for number in range(5):
            image = number % 2
            file = (f"{number}", PNG if image else LINES)
            made.append((await anne.files.create(file=file, purpose="vision" if image else "batch")).id)
            await asyncio.sleep(0.002)
        assert [file.id async for file in anne.files.list(limit=2)] == made[::-1]
        assert [file.id async for file in anne.files.list(limit=2, order="asc")] == made
        assert [file.id async for file in anne.files.list(purpose="vision")] == [made[3], made[1]]
        page = await anne.files.list(limit=2, after=made[3])
        assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
        # Deleting what the list has just shown does not disturb the rest of the list.
        async for file in anne.files.list(limit=2):
            await anne.files.delete(file.id)
        empty = (await anne.files.list()).model_dump()
        assert (empty["data"], empty["has_more"], empty["first_id"], empty["last_id"]) == ([], False, None, None)
        for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError) as refused:
                await anne.files.list(**wrong)  # type: ignore[arg-type]
            assert refused.value.param == next(iter(wrong))

    async def test_other_purposes_are_refused(self, anne: AsyncOpenAI, store: FileStore) -> None:
        for purpose in ("fine-tune", "batch_output", ""):
            with pytest.raises(openai.BadRequestError) as refused:
                await anne.files.create(file=("a", LINES), purpose=purpose)  # type: ignore[arg-type]
            assert refused.value.param == "purpose"
        assert on_disk(store) == []

    async def test_the_largest_file(self, anne: AsyncOpenAI, store: FileStore) -> None:
        with pytest.raises(openai.APIStatusError) as refused:
            await anne.files.create(file=("a", bytes(3_000_001)), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
        assert on_disk(store) == []


class TestOwners:
    async def test_a_key_sees_only_its_own_files(self, client: httpx.AsyncClient, anne: AsyncOpenAI) -> None:
        made = (await anne.files.create(file=("a", PNG), purpose="vision")).id
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            reply = await client.request(method, f"{FILES}/{made}{path}", headers=BEN)
            other = await client.request(method, f"{FILES}/file-{'0' * 32}{path}", headers=BEN)
            assert reply.status_code == 404
            # Whether there is such a file cannot be seen.
            assert reply.json() == other.json()
        assert (await client.get(FILES, headers=BEN)).json()["data"] == []
        content = [{"type": "image_url", "image_url": {"url": made}}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        reply = await client.post(CHAT, json=body, headers=BEN)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "file_not_found")
        assert (await client.post(CHAT, json=body, headers=WITH)).status_code == 200

    async def test_names_are_no_paths(self, client: httpx.AsyncClient, store: FileStore) -> None:
        for name in ("../../keys", "/etc/passwd", "..", "file-1", "a;b\\c", "é\u202e.jsonl", "a" * 3000, "%00"):
            form = {"file": (name, LINES)}
            reply = await client.post(FILES, files=form, data={"purpose": "batch"}, headers=WITH)
            assert reply.status_code == 200
            file = reply.json()
            assert file["filename"] == name[:255]
            assert on_disk(store) == [file["id"]]
            content = await client.get(f"{FILES}/{file['id']}/content", headers=WITH)
            assert content.content == LINES
            assert content.headers["content-type"] == "application/octet-stream"
            assert content.headers["x-content-type-options"] == "nosniff"
            assert content.headers["content-disposition"].startswith("attachment; filename")
            await client.delete(f"{FILES}/{file['id']}", headers=WITH)
        for path in ("..%2Fkeys", "%2E%2E%2Fkeys", "file-1%00", "lock", "%2Fetc%2Fpasswd"):
            for where in ("", "/content"):
                assert (await client.get(f"{FILES}/{path}{where}", headers=WITH)).status_code == 404


class TestQuotas:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nmax_stored_bytes = 1000\nmax_stored_files = 3\n[ben]\nmax_stored_files = 0\n"

    async def test_bytes_and_files_of_a_key(
        self, anne: AsyncOpenAI, client: httpx.AsyncClient, store: FileStore
    ) -> None:
        first = await anne.files.create(file=("a", b"x" * 900), purpose="batch")
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await anne.files.create(file=("b", b"x" * 101), purpose="batch")
        assert refused.value.code == "storage_limit_exceeded"
        assert on_disk(store) == [first.id]
        for _ in range(2):
            await anne.files.create(file=("c", b"x" * 50), purpose="batch")
        with pytest.raises(openai.PermissionDeniedError):
            await anne.files.create(file=("d", b""), purpose="batch")
        await anne.files.delete(first.id)
        await anne.files.create(file=("d", b"x" * 900), purpose="batch")
        reply = await client.post(FILES, files={"file": b""}, data={"purpose": "batch"}, headers=BEN)
        assert reply.status_code == 403


class TestFullDisk:
    async def test_room_is_kept_free(
        self, anne: AsyncOpenAI, store: FileStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(store.folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000))
        store.kept_free = 500
        await anne.files.create(file=("a", b"x" * 100), purpose="batch")
        with pytest.raises(openai.InternalServerError) as refused:
            await anne.files.create(file=("a", b"x" * 501), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (507, "storage_full")
        assert len(on_disk(store)) == 1

    async def test_a_disk_that_fills_during_an_upload(
        self, anne: AsyncOpenAI, store: FileStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(storage.os, "fsync", full)
            with pytest.raises(openai.InternalServerError) as refused:
                await anne.files.create(file=("a", bytes(2_000_000)), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (507, "storage_full")
        assert on_disk(store) == []
        await anne.files.create(file=("a", LINES), purpose="batch")


class TestImages:
    async def test_requests_name_an_image_by_its_id(self, anne: AsyncOpenAI, engine: ScriptedEngine) -> None:
        made = (await anne.files.create(file=("red.png", PNG), purpose="vision")).id
        text = {"type": "text", "text": "What is it?"}
        parts: list[Any] = [
            {"type": "image_url", "image_url": {"url": RED}},
            {"type": "image_url", "image_url": {"url": made}},
            {"type": "image_url", "image_url": made},
            {"type": "image_url", "file_id": made},
            {"type": "file", "file": {"file_id": made}},
        ]
        for shown in parts:
            messages: Any = [{"role": "user", "content": [shown, text]}]
            await anne.chat.completions.create(model="tiny", messages=messages)
        content: Any = [{"type": "input_image", "file_id": made, "detail": "auto"}, {**text, "type": "input_text"}]
        await anne.responses.create(model="tiny", input=[{"role": "user", "content": content}])
        source = {"type": "file", "file_id": made}
        messages = [{"role": "user", "content": [{"type": "image", "source": source}, text]}]
        body = {"model": "tiny", "max_tokens": 16, "messages": messages}
        assert (await anne._client.post("/v1/messages", json=body, headers=WITH)).status_code == 200
        assert len(engine.requests) == 7
        assert len({tuple(request.token_ids) for request in engine.requests}) == 1
        # All are one image in the caches.
        assert len({request.images[0].cache_key for request in engine.requests}) == 1
        assert engine.requests[0].images

    async def test_explain_knows_them(self, anne: AsyncOpenAI, client: httpx.AsyncClient) -> None:
        made = (await anne.files.create(file=("red.png", PNG), purpose="user_data")).id
        messages = [{"role": "user", "content": [{"type": "file", "file": {"file_id": made}}]}]
        reply = await client.post("/v1/explain", json={"model": "tiny", "messages": messages}, headers=WITH)
        assert reply.json()["images"][0]["param"] == "messages[0].content[0].file.file_id"

    async def test_a_stored_conversation_names_them_still(self, anne: AsyncOpenAI, engine: ScriptedEngine) -> None:
        made = (await anne.files.create(file=("red.png", PNG), purpose="vision")).id
        content: Any = [{"type": "input_image", "file_id": made, "detail": "low"}]
        first = await anne.responses.create(model="tiny", input=[{"role": "user", "content": content}])
        items = (await anne.responses.input_items.list(first.id)).model_dump(exclude_none=True)
        assert items["data"][0]["content"] == content
        await anne.responses.create(model="tiny", input="And now?", previous_response_id=first.id)
        assert len(engine.requests[1].images) == 1
        await anne.files.delete(made)
        with pytest.raises(openai.BadRequestError):
            await anne.responses.create(model="tiny", input="And now?", previous_response_id=first.id)

    @pytest.mark.parametrize(
        ("part", "param"),
        [
            ({"type": "image_url", "image_url": {"url": "file-1"}}, "image_url"),
            ({"type": "input_image", "file_id": "1"}, "file_id"),
            ({"type": "input_image", "file_id": "http://127.0.0.1/a.png"}, "file_id"),
            ({"type": "file", "file": {"file_id": "../../keys"}}, "file.file_id"),
        ],
    )
    async def test_an_unknown_id(self, anne: AsyncOpenAI, part: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            await anne.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])  # type: ignore[list-item, misc]
        assert refused.value.param == f"messages[0].content[0].{param}"
        assert refused.value.code == "file_not_found"

    async def test_what_is_no_image_is_refused_at_its_upload(self, anne: AsyncOpenAI, store: FileStore) -> None:
        header = (2_000).to_bytes(4) + (2_000).to_bytes(4) + bytes([8, 2, 0, 0, 0])
        large = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND")
        wrong = {"invalid_image": LINES, "image_too_large": large}
        for code, data in {**wrong, "image_too_large ": PNG + bytes(100_000)}.items():
            with pytest.raises(openai.BadRequestError) as refused:
                await anne.files.create(file=("a", data), purpose="vision")
            assert (refused.value.code, refused.value.param) == (code.strip(), "file")
        assert on_disk(store) == []

    async def test_only_images_are_shown_to_the_model(self, anne: AsyncOpenAI) -> None:
        made = (await anne.files.create(file=("a", PNG), purpose="batch")).id
        content: Any = [{"type": "image_url", "image_url": {"url": made}}]
        with pytest.raises(openai.BadRequestError) as refused:
            await anne.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
        assert refused.value.code == "file_not_found"


WRONG = {
    "no file": part("purpose", b"batch") + END,
    "no purpose": part("file", LINES, "a") + END,
    "two files": part("file", LINES, "a") + part("file", LINES, "b") + part("purpose", b"batch") + END,
    "two purposes": part("purpose", b"vision") + part("purpose", b"batch") + part("file", LINES, "a") + END,
    "a part without a name": part("", b"x") + part("file", LINES, "a") + part("purpose", b"batch") + END,
    "no last boundary": part("file", LINES, "a") + part("purpose", b"batch"),
    "another boundary": part("file", LINES, "a").replace(BOUNDARY.encode(), b"other"),
    "nothing": b"",
    "not text": part("file", LINES, "a") + part("purpose", b"\xff\xfe") + END,
    "as a whole and in parts": part("expires_after", b"1") + part("expires_after[seconds]", b"1") + END,
    "a header without a colon": f"--{BOUNDARY}\r\n{'x' * 100}\r\n\r\n".encode() + END,
    "a header without end": f"--{BOUNDARY}\r\nContent-Disposition: {'x' * 60_000}".encode(),
    "a hundred headers": f"--{BOUNDARY}\r\n{'A: b' * 100}".encode() + b"A: b\r\n" * 100 + END,
}


class TestEnemies:
    async def test_fields_in_any_order(self, running: RunningServer) -> None:
        for form in (
            part("purpose", b"batch") + part("file", LINES, "a"),
            part("file", LINES, "a") + part("purpose", b"batch"),
        ):
            answer = await upload(running, form + END)
            assert (answer.status, json.loads(answer.body)["bytes"]) == (200, len(LINES))

    async def test_fields_that_are_not_read_are_named(self, running: RunningServer) -> None:
        form = part("colour", b"red") + part("file", LINES, "a") + part("purpose", b"batch")
        answer = await upload(running, form + END)
        assert (answer.status, answer.headers["x-llava-ignored"]) == (200, "colour")

    async def test_the_boundary_in_pieces(self, running: RunningServer) -> None:
        data = f"--{BOUNDARY[:-1]}\r\n--\r\n\r\n--{BOUNDARY}x".encode()
        form = part("file", data, "a") + part("purpose", b"batch") + END
        connection = await running.connect()
        for byte in post(FILES, form, FORM, f"Authorization: Bearer {KEY}"):
            await connection.send(bytes([byte]))
        assert json.loads((await connection.answer()).body)["bytes"] == len(data)

    @pytest.mark.parametrize("name", WRONG)
    async def test_a_form_that_is_wrong(self, name: str, running: RunningServer, store: FileStore) -> None:
        answer = await upload(running, WRONG[name])
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert on_disk(store) == []
        assert await running.is_well()

    async def test_ten_thousand_parts(self, running: RunningServer, store: FileStore) -> None:
        fields = b"".join(part(f"f{number}", b"x") for number in range(10_000))
        answer = await upload(running, part("file", LINES, "a") + fields + END)
        assert answer.status == 413
        assert str(FORM_BYTES) in answer.error["message"]
        assert on_disk(store) == []

    async def test_headers_of_other_kinds(self, client: httpx.AsyncClient, store: FileStore) -> None:
        for kind in (
            "application/json",
            "multipart/form-data",
            "text/plain; boundary=a",
            "multipart/mixed; boundary=a",
        ):
            reply = await client.post(FILES, content=b"{}", headers={**WITH, "content-type": kind})
            assert reply.status_code == 400
            assert "multipart/form-data" in reply.json()["error"]["message"]
        reply = await client.post(FILES, content=b"", headers={**WITH, "content-type": FORM[14:] + "x" * 300})
        assert reply.status_code == 400
        packed = {**WITH, "content-type": FORM[14:], "content-encoding": "gzip"}
        assert (await client.post(FILES, content=b"", headers=packed)).status_code == 415
        assert on_disk(store) == []

    async def test_a_length_that_is_too_large_is_refused_before_a_byte_is_read(self, running: RunningServer) -> None:
        answer = await upload(running, b"", "Expect: 100-continue", length=10**12)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")

    @pytest.mark.parametrize("leaving", ["FIN", "RST", "half"])
    async def test_an_upload_that_is_cut_off(self, leaving: Any, running: RunningServer, store: FileStore) -> None:
        form = part("purpose", b"batch") + part("file", bytes(1_500_000), "a")
        connection = await running.connect()
        await connection.send(post(FILES, form, FORM, f"Authorization: Bearer {KEY}", length=2_000_000))
        await until(lambda: on_disk(store))
        await connection.leave(leaving)
        await until(lambda: not on_disk(store))
        assert not store.incoming
        assert await running.is_well()

    async def test_a_slow_upload_is_ended(self, running: RunningServer, store: FileStore) -> None:
        form = part("purpose", b"batch") + part("file", bytes(1000), "a")
        connection = await running.connect()
        await connection.send(post(FILES, form, FORM, f"Authorization: Bearer {KEY}", length=2_000_000))
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "receive_timeout")
        await until(lambda: not on_disk(store))

    async def test_a_long_upload_has_as_long_as_its_bytes(self, running: RunningServer) -> None:
        """Each ``max_body_bytes`` have the time of one body, half a second."""
        form = part("purpose", b"batch") + part("file", bytes(1_500_000), "a") + END
        connection = await running.connect()
        request = post(FILES, form, FORM, f"Authorization: Bearer {KEY}")
        pieces = [request[start : start + 100_000] for start in range(0, len(request), 100_000)]
        for piece in pieces:
            await connection.send(piece)
            await asyncio.sleep(0.06)
        assert (await connection.answer()).status == 200


class TestOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {}

    async def test_the_error_names_the_setting(self, client: httpx.AsyncClient) -> None:
        for method, path in (("POST", FILES), ("GET", FILES), ("GET", f"{FILES}/file-1"), ("POST", "/v1/batches")):
            reply = await client.request(method, path)
            assert reply.status_code == 404
            assert "--data-dir" in reply.json()["error"]["message"]

    async def test_images_by_id(self, client: httpx.AsyncClient) -> None:
        content = [{"type": "file", "file": {"file_id": "file-1"}}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        reply = await client.post(CHAT, json=body)
        assert reply.status_code == 400
        assert "--data-dir" in reply.json()["error"]["message"]


class TestWithoutKeys:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        return {"data_dir": str(tmp_path / "data"), "file_lifetime_seconds": 0, "requests_per_minute": 2}

    async def test_all_callers_share_the_files_and_uploads_count(self, client: httpx.AsyncClient) -> None:
        form: Any = {"files": {"file": ("a", PNG)}, "data": {"purpose": "vision"}}
        made = (await client.post(FILES, **form)).json()
        assert "expires_at" not in made
        assert (await client.get(f"{FILES}/{made['id']}")).json() == made
        content = [{"type": "file", "file": {"file_id": made["id"]}}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert (await client.post(FILES, **form)).status_code == 429

    async def test_metrics(self, client: httpx.AsyncClient, store: FileStore) -> None:
        await client.post(FILES, files={"file": ("a", PNG)}, data={"purpose": "vision"})
        sweeping = asyncio.create_task(store.sweep())
        await until(lambda: store.totals)
        sweeping.cancel()
        page = (await client.get("/metrics")).text
        assert f'llava_api_stored_bytes{{model="owner/tiny",purpose="vision"}} {float(len(PNG))}' in page
        assert 'llava_api_stored_files{model="owner/tiny",purpose="vision"} 1.0' in page
