"""Start the vLLM engine: choose CPU or GPU, set what vLLM reads from the environment, then import and load.

Separate from ``vllm_engine``, because those variables must be set before vllm is imported, and because a wrong flag or
path is reported before 12 s of imports.
"""

import asyncio
import signal
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING

from llava_api.engine import fork_server
from llava_api.engine.base import ModelToLoad
from llava_api.engine.vllm_options import prepare_environment, prepare_start
from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.versions import HOW_TO_INSTALL

if TYPE_CHECKING:
    from llava_api.engine.vllm_engine import VllmEngine


async def start_engine(settings: Settings, model: ModelToLoad) -> "VllmEngine":
    """Load ``model`` in a thread. Raises StartupError."""
    started: Future[VllmEngine] = Future()

    def load_and_wait() -> None:
        # Ctrl-C is only for this process: the engine's processes inherit this mask, and finish open requests.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            engine = load_engine(settings, model)
        except BaseException as error:
            with suppress(InvalidStateError):
                started.set_exception(error)
            return
        try:
            started.set_result(engine)
        except InvalidStateError:
            # The caller was cancelled meanwhile.
            engine.kill()
        # The engine's processes end with the thread that started them (``die_with_parent``).
        engine.closed.wait()

    threading.Thread(target=load_and_wait, name="engine owner", daemon=True).start()
    return await asyncio.wrap_future(started)


def load_engine(settings: Settings, model: ModelToLoad) -> "VllmEngine":
    """Blocks until the engine is ready. Raises StartupError."""
    try:
        import torch
    except ImportError as error:
        raise StartupError(f"vLLM is not installed: {HOW_TO_INSTALL}") from error
    on_cpu = torch.version.cuda is None
    prepare_environment(settings, on_cpu)
    prepare_start(settings, on_cpu, model.cpu_plan)
    forks = model.cpu_plan is not None and model.cpu_plan.forks
    if forks:
        fork_server.start()
    else:
        fork_server.stop()
    from llava_api.engine.vllm_engine import VllmEngine

    if forks:
        fork_server.start_processes_with_it()
    return VllmEngine.start(settings, model, on_cpu=on_cpu)
