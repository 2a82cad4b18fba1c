"""How large vLLM makes the queues between its processes, which lie in /dev/shm.

It asks for 160 MiB for the way to the workers and 240 MiB for each worker's way back, and refuses to start where less
is free: in every container that was started without more than Docker's 64 MiB, on the CPU for a model of any size. The
room is for the largest messages alone, and one that is larger than its place goes through a socket instead.
"""

import shutil
from typing import Any

SHARED_MEMORY = "/dev/shm"
SHARE_OF_ALL = 6
"""A queue takes this part of what is free at most: there are two, and others use the place too."""
SMALLEST_CHUNK_BYTES = 64 * 2**10
NEEDED = {"max_chunk_bytes", "max_chunks", "total_bytes_of_buffer"}
"""What is relied upon of vLLM's buffer, as of vllm 0.32."""


def fit_queues_into_shared_memory() -> bool:
    """Change how large this process makes vLLM's queues, where they do not fit. False where this vLLM has others."""
    from vllm.distributed.device_communicators import shm_broadcast

    buffer: Any = getattr(shm_broadcast, "ShmRingBuffer", None)
    if buffer is None or not set(buffer.__init__.__code__.co_names) >= NEEDED:
        return getattr(buffer, "fitted", False)
    make_as_vllm_does = buffer.__init__

    def make(self: Any, n_reader: int, max_chunk_bytes: int, max_chunks: int, name: str | None = None) -> None:
        # With a name it is one that another process has made, and has its size.
        if name is None:
            max_chunk_bytes = chunk_that_fits(max_chunk_bytes, max_chunks)
        make_as_vllm_does(self, n_reader, max_chunk_bytes, max_chunks, name)

    buffer.__init__ = make
    buffer.fitted = True
    return True


def chunk_that_fits(chunk_bytes: int, chunks: int) -> int:
    """As it is where there is room for several such queues."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return chunk_bytes
    if chunk_bytes * chunks * SHARE_OF_ALL // 2 <= free:
        return chunk_bytes
    return max(SMALLEST_CHUNK_BYTES, min(chunk_bytes, free // SHARE_OF_ALL // chunks))
