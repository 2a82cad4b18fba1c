"""What vLLM loads in each of its processes (entry point ``vllm.general_plugins``).

vLLM runs it in every program of the environment, before anything is known about the model: it must stay cheap, and it
must leave other people's programs as they are. Every process gets our models registered, under names of our own. The
changes to vLLM below are made only in processes that a server of ours has started (``EngineStart.current``).
"""

import mmap
import multiprocessing
import os
import shutil
import time
from multiprocessing import forkserver
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch

from llava_api.engine.processes import die_with_parent
from llava_api.engine.start_errors import EngineStart, record_start_errors
from llava_api.engine.vllm_options import THREADS
from llava_api.engine.vllm_projectors import load_projectors
from llava_api.vision.families import FAMILIES

POLL_SECONDS = 0.002
"""How long vLLM's own polling goes on after a message: within a step the next message comes sooner."""
NAP_MILLISECONDS = 1
"""A message ends a nap. The bound is for a message whose notice was lost, which vLLM itself would find after 5 s."""
READER_NEEDS = {"last_read", "busy_loop_s", "poller", "local_notify_socket"}
"""What ``nap_between_messages`` uses of vLLM's reader, as of vllm 0.32."""
SHARED_MEMORY = "/dev/shm"
SHARE_OF_ALL = 6
"""A queue takes at most this part of the free space: there are two queues, and others use the place too."""
SMALLEST_CHUNK_BYTES = 64 * 2**10
BUFFER_NEEDS = {"max_chunk_bytes", "max_chunks", "total_bytes_of_buffer"}
"""What ``fit_queues_into_shared_memory`` relies on in vLLM's buffer, as of vllm 0.32."""


def register() -> None:
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    for family in FAMILIES:
        name = f"llava_api.engine.vllm_models:{family.engine_class}"
        ModelRegistry.register_model(family.engine_architecture, name)
    start = EngineStart.current()
    if start is None:
        return
    if forkserver.get_inherited_fds() is None:
        # EngineCore only. Workers are its children and have vLLM's own death pipe. What the fork server has forked
        # ends with that.
        die_with_parent(start.server_id)
    record_start_errors(start)
    fit_queues_into_shared_memory()
    load_despite_stale_index()
    load_projectors()
    if current_platform.is_cpu():
        from llava_api.engine.vllm_int4 import use_faster_kernels
        from llava_api.engine.vllm_int8 import use_faster_kernel

        nap_between_messages()
        use_faster_kernels()
        use_faster_kernel()
        set_threads()
        leave_empty_cache_unwritten()
        keep_adapters_on_cpu()


def set_threads() -> None:
    """Let as many threads compute the model as were planned, if this is a forked worker (``fork_server``)."""
    if THREADS in os.environ and multiprocessing.current_process().daemon:
        torch.set_num_threads(int(os.environ[THREADS]))


def leave_empty_cache_unwritten() -> bool:
    """Let the KV cache take memory as it fills. Returns False if this vLLM allocates it in another way.

    vLLM writes zeros all over it: 8 GB of them take 3 s at each start, and memory that few answers need.
    """
    from vllm.v1.worker import gpu_model_runner

    allocate_as_vllm_does = getattr(gpu_model_runner, "allocate_kv_cache", None)
    if not (callable(allocate_as_vllm_does) and calls(gpu_model_runner.GPUModelRunner, "allocate_kv_cache")):
        return False

    def allocate(*arguments: Any, **named: Any) -> Any:
        with patch.object(torch, "zeros", unwritten_zeros):
            return allocate_as_vllm_does(*arguments, **named)

    gpu_model_runner.allocate_kv_cache = allocate
    return True


def keep_adapters_on_cpu() -> bool:
    """Put LoRA adapters into the CPU's memory. Returns False if this vLLM asks for their place in another way.

    vLLM puts them where a layer's weight is. It has none in 8 bit without AMX: oneDNN alone holds it.
    """
    from vllm.lora.layers import base_linear

    if not calls(base_linear.BaseLinearLayerWithLoRA, "_get_lora_device"):
        return False
    base_linear._get_lora_device = lambda base_layer: torch.device("cpu")
    return True


def unwritten_zeros(size: int, *, dtype: torch.dtype, **_: Any) -> torch.Tensor:
    """As torch.zeros for one dimension. The system makes the pages, which are zero, when something is written."""
    memory = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype)


def bind_coordinator() -> None:
    """Have the coordinator of several copies (data parallel), which loads no plugins, end with this process.

    Python's resource tracker, which waits for the last process that could use it, then ends as well.
    """
    from vllm.v1.engine import coordinator

    coordinator.DPCoordinatorProc.run_coordinator = run_bound_coordinator


def run_bound_coordinator(**arguments: Any) -> None:
    """Runs in the new process, in which vLLM is unchanged because it is spawned (``vllm_options``)."""
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    start = EngineStart.current()
    if start is not None:
        die_with_parent(start.server_id)
    DPCoordinatorProc.run_coordinator(**arguments)


def nap_between_messages() -> bool:
    """Change how this process waits for vLLM's shared-memory queue. Returns False if this vLLM has another queue.

    EngineCore and its worker each poll their queue for a whole second after a message before they sleep. With a GPU,
    the cores that they burn are idle anyway; without one, those cores decode images and compute the model. Measured on
    2 cores with the demo checkpoint: two to four times the requests per second, and a fifth to a half of the time to
    the first token (``docs/performance.md``).
    """
    import zmq
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = getattr(shm_broadcast, "SpinCondition", None)
    if condition is None or not set(condition.__init__.__code__.co_names) >= READER_NEEDS:
        return False
    wait_as_vllm_does = condition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        since_message = time.monotonic() - self.last_read
        if since_message < POLL_SECONDS or since_message > self.busy_loop_s:
            # Yields the processor and returns; or, after that second, sleeps until there is a message.
            wait_as_vllm_does(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(NAP_MILLISECONDS)):
            self.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    condition.wait = wait
    return True


def fit_queues_into_shared_memory() -> bool:
    """Make this process's queues as small as /dev/shm requires. Returns False if this vLLM has other queues.

    vLLM asks for 160 MiB for the way to the workers and 240 MiB for each worker's way back, and refuses to start if
    less is free: in every container with Docker's default of 64 MiB, on the CPU for a model of any size. The room is
    for the largest messages only, and a message that is larger than its place goes through a socket instead.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    buffer: Any = getattr(shm_broadcast, "ShmRingBuffer", None)
    if buffer is None or not set(buffer.__init__.__code__.co_names) >= BUFFER_NEEDS:
        return getattr(buffer, "fitted", False)
    make_as_vllm_does = buffer.__init__

    def make(self: Any, n_reader: int, max_chunk_bytes: int, max_chunks: int, name: str | None = None) -> None:
        # A buffer with a name was made by another process and has its size.
        if name is None:
            max_chunk_bytes = chunk_that_fits(max_chunk_bytes, max_chunks)
        make_as_vllm_does(self, n_reader, max_chunk_bytes, max_chunks, name)

    buffer.__init__ = make
    buffer.fitted = True
    return True


def load_despite_stale_index() -> bool:
    """Load model.safetensors if its index names only files that were merged into it, as transformers does.

    Returns False if this vLLM chooses its files in another way.
    """
    from vllm.model_executor.model_loader import default_loader

    if not calls(default_loader.DefaultModelLoader, "filter_duplicate_safetensors_files"):
        return False
    filter_as_vllm_does = default_loader.filter_duplicate_safetensors_files

    def filter_files(files: list[str], *where: Any, **named: Any) -> list[str]:
        try:
            kept: list[str] = filter_as_vllm_does(files, *where, **named)
            return kept
        except FileNotFoundError:
            # The check before the start has found that no file of the index is there, and this one is.
            if [Path(file).name for file in files] != ["model.safetensors"]:
                raise
            return files

    default_loader.filter_duplicate_safetensors_files = filter_files
    return True


def calls(owner: type, function: str) -> bool:
    """Whether a method of the class uses the function, which its module must have under this name."""
    methods = [method for method in vars(owner).values() if isinstance(method, FunctionType)]
    return any(function in method.__code__.co_names and function in method.__globals__ for method in methods)


def chunk_that_fits(chunk_bytes: int, chunks: int) -> int:
    """``chunk_bytes`` if several queues of ``chunks`` such chunks fit into /dev/shm, else a smaller size."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return chunk_bytes
    if chunk_bytes * chunks * SHARE_OF_ALL // 2 <= free:
        return chunk_bytes
    return max(SMALLEST_CHUNK_BYTES, min(chunk_bytes, free // SHARE_OF_ALL // chunks))
