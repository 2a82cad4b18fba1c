"""The folder of --data-dir: what is there after crashes, full disks and uploads that were given up."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llava_api.errors import Forbidden, RequestTooLarge, StartupError, StorageFull
from llava_api.storage import database, files
from llava_api.storage.data_folder import DataFolder
from llava_api.storage.files import Description, Quota, StoredFile
from tests.support.small_disk import small_disk


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataFolder]:
    opened = DataFolder(tmp_path)
    yield opened
    opened.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def create(data: DataFolder, *parts: bytes, owner: str = "ann", **more: object) -> StoredFile:
    about = Description("batch", "in.jsonl")
    return await data.files.create(owner, chunks(*parts), lambda path: about, **more)  # type: ignore[arg-type]


def names(data: DataFolder) -> list[str]:
    return sorted(os.listdir(data.files.folder))


async def test_a_file_is_what_was_written(data: DataFolder) -> None:
    made = await create(data, b"a" * 700_000, b"b" * 700_000, b"c")
    assert made.bytes == 1_400_001
    assert data.files.path(made.id).read_bytes() == b"a" * 700_000 + b"b" * 700_000 + b"c"
    assert await data.files.get(made.id, "ann") == made
    assert await data.files.get(made.id, "bob") is None
    assert not await data.files.delete(made.id, "bob")
    assert await data.files.delete(made.id, "ann")
    assert await data.files.get(made.id, "ann") is None
    assert names(data) == []


async def test_pages_go_on_after_a_file_that_was_deleted_meanwhile(data: DataFolder) -> None:
    made = []
    for _ in range(5):
        made.append((await create(data, b"x")).id)
        await asyncio.sleep(0.002)
    first, has_more = await data.files.list("ann", order="asc", limit=2)
    assert ([file.id for file in first], has_more) == (made[:2], True)
    for file in first:
        await data.files.delete(file.id, "ann")
    rest, has_more = await data.files.list("ann", order="asc", after=made[1], limit=3)
    assert ([file.id for file in rest], has_more) == (made[2:], False)
    newest, has_more = await data.files.list("ann", limit=1)
    assert ([file.id for file in newest], has_more) == ([made[4]], True)
    assert await data.files.list("ann", purpose="vision", limit=1) == ([], False)
    assert await data.files.list("bob", limit=1) == ([], False)


async def test_files_go_when_their_time_has_come(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = Description("batch", "in.jsonl", expires_after=1)
    monkeypatch.setattr(files.time, "time", lambda: 999.0)
    made = await data.files.create("ann", chunks(b"x"), lambda path: soon)
    kept = await create(data, b"y")
    assert await data.files.get(made.id, "ann") == made
    monkeypatch.setattr(files.time, "time", lambda: 1_000.0)
    assert await data.files.get(made.id, "ann") is None
    assert (await data.files.list("ann", limit=9))[0] == [kept]
    assert await data.files.expire() == 1
    assert names(data) == [kept.id]


async def test_nothing_is_left_of_a_file_that_is_refused(data: DataFolder) -> None:
    with pytest.raises(RequestTooLarge):
        await create(data, b"x" * 6, b"x" * 5, max_bytes=10)
    with pytest.raises(Forbidden, match="store 10 bytes"):
        await create(data, b"x" * 6, b"x" * 5, quota=Quota(bytes=10))

    def refuse(path: Path) -> Description:
        assert path.read_bytes() == b"x"
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        await data.files.create("ann", chunks(b"x"), refuse)
    assert names(data) == []
    assert not data.files.incoming


async def test_quotas_count_the_uploads_of_one_owner_together(data: DataFolder) -> None:
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 6
        arrived.set()
        await gate.wait()

    about = Description("batch", "in.jsonl")
    first = asyncio.create_task(data.files.create("ann", slow(), lambda path: about, quota=Quota(bytes=10)))
    await arrived.wait()
    with pytest.raises(Forbidden):
        await create(data, b"x" * 6, quota=Quota(bytes=10))
    await create(data, b"x" * 6, owner="bob", quota=Quota(bytes=10))
    gate.set()
    await first
    with pytest.raises(Forbidden, match="store 1 files"):
        await create(data, b"", quota=Quota(files=1))


async def test_an_upload_that_is_given_up_leaves_nothing(data: DataFolder) -> None:
    arrived = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * files.WRITE_BYTES
            arrived.set()

    upload = asyncio.create_task(data.files.create("ann", endless(), lambda path: Description("batch", "a")))
    await arrived.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert names(data) == []


async def test_room_on_the_disk_is_kept_free(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(data.files.folder)
    data.files.kept_free = 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000_005))
    await create(data, b"x" * 5)
    with pytest.raises(StorageFull):
        await create(data, b"x" * 6)
    with pytest.raises(StorageFull):
        await create(data, expected_bytes=6)
    assert len(names(data)) == 1


async def test_a_full_disk_is_said_and_leaves_nothing(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(StorageFull):
            await create(data, b"x")
    assert names(data) == []
    made = await data.database.run(lambda connection: data.files.add_output(connection, "ann", "out.jsonl"))
    await data.files.append(made, b"1\n")
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(StorageFull):
            await data.files.append(made, b"2\n")
    assert data.files.path(made).read_bytes() == b"1\n"


async def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 8_000_000) as folder:
        data = DataFolder(folder)
        try:
            made = [await create(data, b"x" * 1_500_000) for _ in range(4)]
            with pytest.raises(StorageFull):
                await create(data, *[b"x" * 400_000] * 6)
            assert names(data) == sorted(file.id for file in made)
            room = shutil.disk_usage(folder).free
            (folder / "filler").write_bytes(bytes(room - 8192))
            # The bytes fit now, and what the database writes for the row does not.
            with pytest.raises(StorageFull):
                await create(data, b"x" * 4096)
            assert names(data) == sorted(file.id for file in made)
            assert (await data.files.list("ann", order="asc", limit=9))[0] == made
            (folder / "filler").unlink()
            await data.files.delete(made[0].id, "ann")
            await create(data, b"x" * 1_500_000)
        finally:
            data.close()


async def test_a_row_that_cannot_be_written_takes_its_file_along(data: DataFolder) -> None:
    made = await create(data, b"x")
    await data.database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())

    async def fill() -> None:
        for _ in range(1000):
            await create(data, b"x")

    with pytest.raises(StorageFull):
        await fill()
    await data.database.run(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
    listed = [file.id for file in (await data.files.list("ann", order="asc", limit=2000))[0]]
    assert listed[0] == made.id
    assert names(data) == listed


async def test_an_output_is_seen_when_it_is_published(data: DataFolder) -> None:
    made = await data.database.run(lambda connection: data.files.add_output(connection, "ann", "out.jsonl"))
    await data.files.append(made, b"1\n2\n")
    assert await data.files.get(made, "ann") is None
    assert not await data.files.delete(made, "ann")
    await data.database.run(lambda connection: data.files.publish_output(connection, made, None))
    found = await data.files.get(made, "ann")
    assert found is not None
    assert (found.purpose, found.filename, found.bytes) == ("batch_output", "out.jsonl", 4)


async def test_an_output_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    made = await data.database.run(lambda connection: data.files.add_output(connection, "ann", "out.jsonl"))
    await data.files.append(made, b"1\n")
    await data.database.run(lambda connection: data.files.drop_output(connection, made))
    data.close()
    data = DataFolder(tmp_path)
    assert names(data) == []
    data.close()


async def test_a_transaction_that_fails_changes_nothing(data: DataFolder) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        data.files.add_output(connection, "ann", "out.jsonl")
        raise LookupError

    with pytest.raises(LookupError):
        await data.database.run(fail)
    assert await data.files.used("ann") == (0, 0)


CRASHING = """
import asyncio, os, sys
from pathlib import Path
from llava_api.storage import database, files
from llava_api.storage.data_folder import DataFolder

step, folder = sys.argv[1:]
data = DataFolder(Path(folder))

async def chunks():
    yield b"x" * files.WRITE_BYTES
    if step == "writing":
        os._exit(9)

def describe(path):
    if step == "describing":
        os._exit(9)
    return files.Description("batch", "in.jsonl")

if step == "renamed":
    files.sync_folder = lambda folder: os._exit(9)
if step == "inserted":
    insert = files.insert
    files.insert = lambda *given: (insert(*given), os._exit(9))
asyncio.run(data.files.create("ann", chunks(), describe))
os._exit(9)
"""


@pytest.mark.parametrize("step", ["writing", "describing", "renamed", "inserted", "kept"])
def test_a_crash_at_any_step_leaves_a_whole_file_or_none(step: str, tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASHING, step, str(tmp_path)])
    assert ended.returncode == 9
    (tmp_path / "files" / "notes.txt").write_text("not ours")
    data = DataFolder(tmp_path)
    try:
        found, _ = asyncio.run(data.files.list("ann", limit=9))
        assert len(found) == (1 if step == "kept" else 0)
        assert [data.files.path(file.id).stat().st_size for file in found] == [file.bytes for file in found]
        assert names(data) == [*(file.id for file in found), "notes.txt"]
    finally:
        data.close()


def test_a_new_folder_is_for_its_user_only(tmp_path: Path) -> None:
    DataFolder(tmp_path / "new" / "data").close()
    assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_one_server_at_a_time(data: DataFolder, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is used by another server"):
        DataFolder(tmp_path)


def test_the_schema_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DataFolder(tmp_path).close()
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE later (id TEXT);"))
        DataFolder(tmp_path).close()
    with pytest.raises(StartupError, match="written by a newer llava-api"):
        DataFolder(tmp_path)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be used: File exists"):
        DataFolder(tmp_path / "file")
    with pytest.raises(StartupError, match="cannot be used"):
        DataFolder(Path("/proc/no"))
    (tmp_path / "state.sqlite3").write_text("not a database" * 100)
    with pytest.raises(StartupError, match="file is not a database"):
        DataFolder(tmp_path)


def test_a_database_that_is_damaged(tmp_path: Path) -> None:
    DataFolder(tmp_path).close()
    state = tmp_path / "state.sqlite3"
    first = state.read_bytes()[:4096]
    state.write_bytes(first + b"\xff" * (state.stat().st_size - len(first)))
    with pytest.raises(StartupError, match=r"state\.sqlite3 cannot be used: database disk image is malformed"):
        DataFolder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to all files")
def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    DataFolder(tmp_path).close()
    (tmp_path / "state.sqlite3").chmod(0o400)
    with pytest.raises(StartupError, match="cannot be used: it is read-only"):
        DataFolder(tmp_path)
