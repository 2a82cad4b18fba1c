"""Start the vLLM engine: choose CPU or GPU, set what vLLM reads from the environment, then import and load.

A module of its own, because those variables must stand before the first import of vllm, and because a wrong flag
or path is told before 12 s of imports.
"""

from llava_api.engine.base import Engine, ModelToLoad
from llava_api.engine.vllm_options import prepare_environment
from llava_api.errors import StartupError
from llava_api.settings import Settings


def start_engine(settings: Settings, model: ModelToLoad) -> Engine:
    """Load ``model``; blocks until it is ready. Raises StartupError."""
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
