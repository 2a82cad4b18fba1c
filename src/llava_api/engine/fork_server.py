"""vLLM's processes on a CPU, forked from a process that has imported vLLM already.

vLLM starts EngineCore and then a worker, each of which imports torch and vLLM again. With multiprocessing's fork
server they are imported once, while the server imports them for itself on another core, and the modules are in memory
once. The fork server has one thread and has computed nothing, so forking it is safe; forking the server or EngineCore
is not. The kernel ends it when the server ends, and what it has forked when the fork server ends.

On a GPU vLLM's processes are spawned, as vLLM starts them itself. So are those whose threads vLLM binds to cores:
OpenMP reads the variables for that when it is loaded, which is before the fork. The threads of a forked worker are
counted by ``vllm_options.THREADS``.
"""

import os
import shutil
import signal
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing import context, current_process, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from llava_api.engine.processes import die_with

PRELOADED = "llava_api.engine.fork_server_preload"
SERVER_ID = "_LLAVA_API_SERVER"
"""Variable that names the server's process to the fork server."""
LIBRARIES = {"torch": ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*"), "vllm": ("libs/libtcmalloc*.so*",)}
"""What vLLM preloads into its processes on a CPU: one OpenMP for torch and itself, and a faster allocator."""


class Process(context.ForkServerProcess):
    """Runs in the environment of the process that starts it; the fork server's own is older."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.environment = dict(os.environ)
        self.ends_with = process_id()
        """The fork server, if this process is EngineCore. None for a worker, which EngineCore starts."""

    def run(self) -> None:
        # vLLM ends a worker with EngineCore, but only after the worker has loaded the model.
        die_with(self.ends_with or os.getppid())
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Context(context.ForkServerContext):
    Process = Process


def start() -> None:
    """Start the fork server, if there is none, which then imports vLLM.

    The variables of ``vllm_options.prepare_environment`` must be set. The calling thread must live as long as the
    server does, and keeps Ctrl-C from the engine's processes.
    """
    if process_id() is not None:
        return
    os.environ[SERVER_ID] = str(os.getpid())
    os.environ.setdefault("LD_PRELOAD", ":".join(libraries()))
    forkserver.set_forkserver_preload([PRELOADED])
    # First, because the start of the tracker ends with SIGINT allowed, whatever was before.
    resource_tracker.ensure_running()
    # Inherited: the engine's processes finish open requests.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop() -> None:
    """End the fork server, if there is one, and with it what it has forked."""
    running = process_id()
    if running is not None:
        with suppress(ProcessLookupError):
            os.kill(running, signal.SIGKILL)
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def remove_folder() -> None:
    """Remove the folder of the fork server's socket, as this process ends without multiprocessing's own clean-up."""
    folder = current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def process_id() -> int | None:
    """Of the fork server that this process has started."""
    running: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return running


def start_processes_with_it() -> None:
    """Have vLLM start this process's children with the fork server."""
    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    for module in (utils, multiproc_executor):
        module.get_mp_context = Context


def libraries() -> list[str]:
    found: list[str] = []
    for package, patterns in LIBRARIES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [str(path) for pattern in patterns for path in Path(spec.origin).parent.glob(pattern)]
    return found
