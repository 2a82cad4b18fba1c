"""Start the vLLM engine: choose CPU or GPU, set what vLLM reads from the environment, then import and load.

A module of its own, because those variables must stand before the first import of vllm, and because a wrong flag
or path is told before 12 s of imports.
"""

import asyncio
import signal
import threading
from typing import TYPE_CHECKING

from llava_api.engine.base import ModelToLoad
from llava_api.engine.vllm_options import prepare_environment
from llava_api.errors import StartupError
from llava_api.settings import Settings

if TYPE_CHECKING:
    from llava_api.engine.vllm_engine import VllmEngine


async def start_engine(settings: Settings, model: ModelToLoad) -> "VllmEngine":
    """Load ``model``; the event loop goes on meanwhile. Raises StartupError."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[VllmEngine] = loop.create_future()

    def own() -> None:
        # Ctrl-C is for this process alone: the engine's processes inherit this mask, and finish what is open.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            engine = load_engine(settings, model)
        except BaseException as error:
            loop.call_soon_threadsafe(tell, started, error)
            return
        loop.call_soon_threadsafe(tell, started, engine)
        # The engine's processes end with the thread that started them (``die_with_parent``).
        engine.closed.wait()

    threading.Thread(target=own, name="engine owner", daemon=True).start()
    return await started


def tell(started: "asyncio.Future[VllmEngine]", result: "VllmEngine | BaseException") -> None:
    """Hand on what came of a start, if anybody still waits for it."""
    if started.done():
        if not isinstance(result, BaseException):
            result.kill()
    elif isinstance(result, BaseException):
        started.set_exception(result)
    else:
        started.set_result(result)


def load_engine(settings: Settings, model: ModelToLoad) -> "VllmEngine":
    """Blocks until the engine is ready. Raises StartupError."""
    try:
        import torch
    except ImportError as error:
        raise StartupError(
            "vLLM is not installed: pip install 'llava-api[cuda]' on a machine with an NVIDIA GPU, "
            "'llava-api[cpu]' elsewhere"
        ) from error
    on_cpu = torch.version.cuda is None
    prepare_environment(settings, on_cpu)
    from llava_api.engine.vllm_engine import VllmEngine

    return VllmEngine.start(settings, model, on_cpu=on_cpu)
