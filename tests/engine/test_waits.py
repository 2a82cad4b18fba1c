"""vLLM's processes sleep between two messages on a machine without a GPU, and wake when one comes."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from vllm.distributed.device_communicators import shm_broadcast
from vllm.utils.network_utils import get_open_zmq_ipc_path

from llava_api.engine.vllm_plugin import nap_between_messages


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """A reader that has just read, and its writer."""
    assert nap_between_messages(), "this vLLM waits in another way: see engine/vllm_plugin.py"
    context = zmq.Context()
    address = get_open_zmq_ipc_path()
    writer = shm_broadcast.SpinCondition(is_reader=False, context=context, notify_address=address)
    reader = shm_broadcast.SpinCondition(is_reader=True, context=context, notify_address=address)
    time.sleep(0.2)
    reader.record_read()
    yield reader, writer
    context.destroy(linger=0)


def test_waiting_for_a_message_costs_next_to_nothing(pair: tuple[Any, Any]) -> None:
    reader, _ = pair
    before = time.thread_time()
    while time.monotonic() - reader.last_read < 0.5:
        reader.wait()
    # vLLM's own way takes all of the half second.
    assert time.thread_time() - before < 0.25


def test_a_message_ends_a_nap(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_api.engine.vllm_plugin.NAP_MILLISECONDS", 5000)
    reader, writer = pair
    time.sleep(0.05)
    threading.Timer(0.1, writer.notify).start()
    before = time.monotonic()
    reader.wait()
    assert time.monotonic() - before < 2
