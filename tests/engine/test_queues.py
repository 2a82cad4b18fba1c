"""vLLM's queues in a small /dev/shm, as a container has it by default."""

import shutil
import threading
from collections import namedtuple

import pytest
from vllm.distributed.device_communicators import shm_broadcast

from llava_api.engine.vllm_plugin import chunk_that_fits, fit_queues_into_shared_memory

MIB = 2**20
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How much of /dev/shm is said to be free."""
    found = {"bytes": 64 * MIB}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, found["bytes"]))
    monkeypatch.setattr(shm_broadcast.ShmRingBuffer, "__init__", shm_broadcast.ShmRingBuffer.__init__)
    assert fit_queues_into_shared_memory()
    return found


def test_in_64_mib_both_queues_fit_with_room_to_spare(free: dict[str, int]) -> None:
    broadcast, response = shm_broadcast.ShmRingBuffer(1, 16 * MIB, 10), shm_broadcast.ShmRingBuffer(1, 24 * MIB, 10)
    assert broadcast.total_bytes_of_buffer + response.total_bytes_of_buffer < 64 * MIB / 2
    assert broadcast.max_chunk_bytes > MIB


def test_a_reader_finds_the_size_that_the_writer_made(free: dict[str, int]) -> None:
    written = shm_broadcast.ShmRingBuffer(1, 24 * MIB, 10)
    free["bytes"] = 16 * MIB
    read = shm_broadcast.ShmRingBuffer(*written.handle())
    assert read.max_chunk_bytes == written.max_chunk_bytes


def test_a_message_larger_than_its_place_arrives_whole(free: dict[str, int]) -> None:
    queue = shm_broadcast.MessageQueue(1, 1)
    reader = shm_broadcast.MessageQueue.create_from_handle(queue.export_handle(), 0)
    message = bytes(range(256)) * (queue.buffer.max_chunk_bytes // 128)
    assert len(message) > queue.buffer.max_chunk_bytes
    # Readers and writers greet one another before the first message.
    greeting = threading.Thread(target=queue.wait_until_ready)
    greeting.start()
    reader.wait_until_ready()
    greeting.join(30)
    for sent in (b"small", message, b"small"):
        queue.enqueue(sent)
        assert reader.dequeue(timeout=30) == sent


@pytest.mark.parametrize("room", [720 * MIB, 8192 * MIB])
def test_where_there_is_room_vllm_has_its_way(free: dict[str, int], room: int) -> None:
    free["bytes"] = room
    assert chunk_that_fits(24 * MIB, 10) == 24 * MIB


def test_a_place_that_cannot_be_asked_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> Usage:
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "disk_usage", missing)
    assert chunk_that_fits(24 * MIB, 10) == 24 * MIB
