"""Settings -> vLLM's engine arguments, checked against what the installed vLLM knows."""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from llava_api.engine.base import ModelToLoad
from llava_api.engine.cpu_plan import SEQUENCES, STALL_SECONDS, UNBOUND, CpuPlan
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
"""Settings with vLLM's own names. vLLM decides on those that are None."""
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
THREADS = "_LLAVA_API_THREADS"
"""Variable with the number of threads that compute the model, for a worker whose threads vLLM does not bind."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for ``max_lora_rank``."""


def parse_engine_arg(text: str, known: set[str]) -> tuple[str, Any]:
    """``name=value`` -> (name, value), the value parsed as JSON if it is JSON."""
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
    """Set the variables that vLLM reads when it is imported. Must run before that."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    level = "DEBUG" if settings.log_level == "debug" else "ERROR"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", level)
    # vLLM warns of what is no fault here before it has read that level, and torch of the memory's only NUMA node.
    logging.getLogger("vllm").setLevel(level)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "INFO" if level == "DEBUG" else "ERROR")
    # A user can do nothing about deprecations inside vLLM, nor about shared memory that Python's tracker cleans up
    # after an engine was killed.
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"
    )
    if settings.log_format == "json" and settings.log_level != "debug":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("vllm_logging.json")))
    # A forked engine would hold the server's port and outlive it. vLLM itself forks on a GPU.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if not on_cpu and not has_nvcc():
        # FlashInfer compiles its sampler with nvcc while the engine starts; vLLM's own sampler needs none.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    if on_cpu and settings.enforce_eager is not False:
        # Otherwise vLLM compiles two small functions when the first answer is sampled, and when the first
        # log-probabilities are asked for. That takes seconds, in which nothing else is answered, and a C++ compiler.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def prepare_start(settings: Settings, on_cpu: bool, plan: CpuPlan | None = None) -> None:
    """Set the variables that vLLM reads when an engine starts."""
    # A step that takes too long ends the engine by our own limit, which is named then, and not by vLLM's.
    limit = int(settings.engine_stall_seconds or STALL_SECONDS) + 60
    os.environ.setdefault("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", str(limit))
    if on_cpu and plan is None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kvcache_space or 1))
    if plan is not None and plan.forks and BINDING not in os.environ:
        os.environ[BINDING] = UNBOUND
        os.environ[THREADS] = str(plan.thread_count)


def has_nvcc() -> bool:
    """Whether CUDA's compiler is where FlashInfer looks for it."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return shutil.which("nvcc") is not None or (home / "bin" / "nvcc").is_file()


def engine_arguments(settings: Settings, model: ModelToLoad, *, on_cpu: bool, known: set[str]) -> dict[str, Any]:
    """Keyword arguments for vLLM's AsyncEngineArgs."""
    arguments: dict[str, Any] = {"model": model.path}
    for name in PASSED_ON:
        value = getattr(settings, name)
        if value is not None:
            arguments[name] = value
    if on_cpu:
        arguments.setdefault("max_num_seqs", SEQUENCES)
        # Its follow-up questions about the same image reuse more: 0.5 s instead of 1.8 s with vLLM's 128 (7B).
        arguments["block_size"] = 32
    if model.quantization is not None:
        arguments["quantization"] = model.quantization
    # Left to choose, vLLM turns float32 checkpoints into 16 bits; its online quantization needs that.
    stays_float32 = model.stored_dtype == "float32" and model.quantization is None
    arguments["dtype"] = "float32" if settings.dtype == "auto" and stays_float32 else settings.dtype
    if model.cpu_plan is not None:
        arguments |= planned_arguments(model.cpu_plan)
    arguments["enforce_eager"] = on_cpu if settings.enforce_eager is None else settings.enforce_eager
    arguments["limit_mm_per_prompt"] = {"image": max(1, settings.max_images_per_request)}
    # Images arrive as finished tensors; a second cache of them in the front end would only take memory.
    arguments["mm_processor_cache_gb"] = 0
    # Keeps vLLM's series in prometheus_client's registry, which /metrics shows; it does not log them.
    arguments["disable_log_stats"] = False
    if model.name is not None:
        arguments["served_model_name"] = model.name
    # Our grammars are written for llguidance (chat/grammar.py, grammar_check.py).
    arguments["structured_outputs_config"] = {"backend": "guidance"}
    arguments["hf_overrides"] = config_overrides(model)
    if model.max_loras:
        arguments["enable_lora"] = True
        # One more than needed: vLLM writes "no adapter" as slot -1, which its CPU kernels take for the last slot.
        arguments["max_loras"] = model.max_loras + 1
        # None is read from its folder again, also with fewer places on the GPU (--engine-arg max_loras).
        arguments["max_cpu_loras"] = model.max_loras + 1
        arguments["max_lora_rank"] = model.max_lora_rank
    for text in settings.engine_arg:
        name, value = parse_engine_arg(text, known)
        arguments[name] = {**arguments["hf_overrides"], **value} if name == "hf_overrides" else value
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise StartupError(f"the installed vLLM has no engine argument {', '.join(unknown)}: install another version")
    return arguments


def planned_arguments(plan: CpuPlan) -> dict[str, Any]:
    made: dict[str, Any] = {
        "dtype": plan.dtype,
        "max_model_len": plan.context,
        "kv_cache_memory_bytes": plan.cache_bytes,
        "max_num_seqs": plan.max_num_seqs,
    }
    if plan.max_num_batched_tokens is not None:
        made["max_num_batched_tokens"] = plan.max_num_batched_tokens
    return made


def rank_for(needed: int) -> int:
    """The smallest rank allowed by vLLM that is not below ``needed``."""
    return next((rank for rank in LORA_RANKS if rank >= needed), needed)


def config_overrides(model: ModelToLoad) -> dict[str, Any]:
    """Values that replace those of the checkpoint's config.json inside the engine."""
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
