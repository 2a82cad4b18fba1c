"""Settings -> vLLM's engine arguments, checked against what the installed vLLM knows."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_api.engine.base import Adapter, ModelToLoad
from llava_api.errors import StartupError
from llava_api.settings import Settings

PASSED_ON = (
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "distributed_executor_backend",
    "seed",
    "revision",
    "download_dir",
    "trust_remote_code",
)
"""Settings that carry vLLM's own name; one that is None is left to vLLM."""


CPU_SEQUENCES = 16
"""Where nothing else is said: 500 requests at once were done in 11.3 s with it, with vLLM's 256 in 13.5 s (2 cores,
demo checkpoint), and one of another caller among them in 0.6 to 0.9 s instead of 3.9 to 5.3 s."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``max_lora_rank`` may be."""


def parse_engine_arg(text: str, known: set[str]) -> tuple[str, Any]:
    """``name=value`` -> (name, value), the value read as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals:
        raise StartupError(f"--engine-arg {text}: write it as name=value")
    if name not in known:
        near = sorted(other for other in known if name.split("_")[0] in other)[:8]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise StartupError(f"--engine-arg {name}: the installed vLLM has no such engine argument{hint}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def prepare_environment(settings: Settings, on_cpu: bool) -> None:
    """Variables that vLLM reads when it is imported. Must run before the first import of vllm."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "DEBUG" if settings.log_level == "debug" else "ERROR")
    # Deprecations inside vLLM's own processes are nothing that a user can act on; nor is shared memory that Python's
    # tracker cleans up after an engine that was ended at once.
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"
    )
    if settings.log_format == "json" and settings.log_level != "debug":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("vllm_logging.json")))
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kvcache_space))


def engine_arguments(settings: Settings, model: ModelToLoad, *, on_cpu: bool, known: set[str]) -> dict[str, Any]:
    """Keyword arguments for vLLM's AsyncEngineArgs."""
    arguments: dict[str, Any] = {"model": model.path}
    for name in PASSED_ON:
        value = getattr(settings, name)
        if value is not None:
            arguments[name] = value
    if on_cpu:
        arguments.setdefault("max_num_seqs", CPU_SEQUENCES)
    if model.quantization is not None:
        arguments["quantization"] = model.quantization
    # vLLM turns float32 checkpoints into 16 bits where it is left to choose; its online quantization wants that.
    stays_float32 = model.stored_dtype == "float32" and model.quantization is None
    arguments["dtype"] = "float32" if settings.dtype == "auto" and stays_float32 else settings.dtype
    arguments["enforce_eager"] = on_cpu if settings.enforce_eager is None else settings.enforce_eager
    arguments["limit_mm_per_prompt"] = {"image": max(1, settings.max_images_per_request)}
    # Pictures arrive as finished tensors; a second cache of them in the front end would only hold memory.
    arguments["mm_processor_cache_gb"] = 0
    # Its series in prometheus_client's registry, which /metrics shows; vLLM writes no log of them by itself.
    arguments["disable_log_stats"] = False
    if model.name is not None:
        arguments["served_model_name"] = model.name
    # llguidance's grammars, for which ours are written (chat/grammar.py, grammar_check.py).
    arguments["structured_outputs_config"] = {"backend": "guidance"}
    arguments["hf_overrides"] = config_overrides(model)
    if model.adapters:
        arguments["enable_lora"] = True
        # One more than there are: vLLM writes "no adapter" as slot -1, and its CPU kernels take that for the last slot.
        arguments["max_loras"] = len(model.adapters) + 1
        arguments["max_lora_rank"] = settings.max_lora_rank or rank_for(model.adapters)
    for text in settings.engine_arg:
        name, value = parse_engine_arg(text, known)
        arguments[name] = {**arguments["hf_overrides"], **value} if name == "hf_overrides" else value
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise StartupError(f"the installed vLLM has no engine argument {', '.join(unknown)}: install another version")
    return arguments


def rank_for(adapters: Sequence[Adapter]) -> int:
    """The smallest of the ranks that vLLM can be set to which holds every adapter."""
    needed = max(adapter.rank for adapter in adapters)
    return next((rank for rank in LORA_RANKS if rank >= needed), needed)


def config_overrides(model: ModelToLoad) -> dict[str, Any]:
    """What the checkpoint's config.json is to say inside the engine."""
    overrides: dict[str, Any] = {
        "architectures": [model.family.engine_architecture],
        "image_mean": list(model.normalisation.mean),
        "image_std": list(model.normalisation.std),
    }
    if model.pinpoints:
        overrides["image_grid_pinpoints"] = [list(point) for point in model.pinpoints]
    if model.merge is not None:
        overrides["mm_patch_merge_type"] = model.merge
    return overrides


def known_arguments(engine_args_type: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(engine_args_type)}
