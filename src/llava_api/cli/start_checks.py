"""Checks before the engine is started: they fail half a minute earlier than the engine would, with a clear sentence.

Only what is certain to fail stops a start. ``llava-api doctor`` warns about the rest.
"""

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.size import PRECISIONS, count_parameters, stored_precision, unquantized_dtype
from llava_api.checkpoints.whole import Weights, check_whole
from llava_api.cli import machine
from llava_api.cli.flags import find_model
from llava_api.cli.wrong_settings import unknown_variables
from llava_api.engine import fork_server
from llava_api.engine.cpu_plan import CheckpointFacts, CpuMachine, CpuPlan, plan, thread_count
from llava_api.engine.vllm_options import BINDING, prepare_environment
from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.units import readable_size

log = logging.getLogger("llava_api")

SHARED_MEMORY_BYTES = 40 * 2**20
"""For the queues between vLLM's processes as small as they may get (``engine/vllm_plugin.py``)."""
BITS = {None: 16, "8bit": 8, "4bit": 4}
NO_INT8_FROM = 10.0
"""Blackwell: vLLM's csrc/libtorch_stable/quantization/w8a8/cutlass has int8 for 7.5 to 9.0 only."""
GPU_SHARE = 0.92
"""vLLM's default gpu_memory_utilization; older versions have 0.9."""


def check_start(model: ServedModel, settings: Settings) -> CpuPlan | None:
    """The plan for a machine without a GPU. Raises StartupError if the engine could not load ``model`` here.

    A model that is still to be converted or quantized is judged by what it will be then.
    """
    for name, meant in unknown_variables(os.environ).items():
        log.warning("the variable %s sets nothing; did you mean %s?", name, meant)
    on_gpu = machine.torch_is_for_cuda()
    if on_gpu is None:
        # start_engine says what to install.
        return None
    check_shared_memory(settings, on_gpu=on_gpu)
    check_context(model, settings)
    weights = local_weights(model)
    if not on_gpu:
        return cpu_plan(model, weights, settings)
    check_gpu_kernels(model)
    if weights is not None or model.precision is not None or model.checkpoint.format != "hub":
        check_gpu_memory(weight_bytes(model, weights, settings, settings.dtype), settings)
    return None


def memory_needed(wanted: str, settings: Settings, free: int) -> int:
    """Bytes that a server of ``wanted`` takes on a machine without a GPU that has ``free`` bytes; 0 if unknown.

    Raises StartupError if that is too little.
    """
    model = open_model(find_model(wanted), (wanted,), settings)
    found = cpu_plan(model, local_weights(model), settings, replace(this_machine(), free=free))
    return 0 if found is None else found.needed


def local_weights(model: ServedModel) -> Weights | None:
    """None if they are still to be fetched or converted. Raises StartupError if some are missing."""
    folder = Path(model.checkpoint.model).expanduser()
    return check_whole(folder) if folder.is_dir() and model.checkpoint.format == "hub" else None


def cpu_plan(
    model: ServedModel, weights: Weights | None, settings: Settings, here: CpuMachine | None = None
) -> CpuPlan | None:
    """None for an engine on several machines, or a model that transformers does not know. Raises StartupError.

    ``here``: instead of this machine as it is now.
    """
    if settings.distributed_executor_backend == "ray":
        return None
    try:
        parameters = count_parameters(model.checkpoint)
    except StartupError as error:
        log.debug("no settings are chosen for this machine: %s", error)
        return None
    given = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    if settings.cpu_kvcache_space is None and given.isdecimal():
        settings = settings.model_copy(update={"cpu_kvcache_space": int(given)})
    checkpoint, sizes = model.checkpoint, parameters.memory_bytes()
    stored, precision = checkpoint.stored_dtype, stored_precision(checkpoint)
    return plan(
        here or this_machine(),
        CheckpointFacts(
            stored_dtype=stored if model.precision is None else unquantized_dtype(stored),
            context=checkpoint.context_length,
            parameters=parameters.total,
            cache_numbers=parameters.cached,
            weights=partial(weight_bytes, model, weights, settings),
            quantized={f"--load-{name}": sizes[size] for name, size in PRECISIONS.items()} if precision is None else {},
            bits=BITS[model.precision or precision],
        ),
        settings,
    )


def this_machine() -> CpuMachine:
    found = machine.memory()
    return CpuMachine(
        None if found is None else found.available,
        machine.physical_cores(),
        machine.cpu_features(),
        machine.cpu_limit(),
        os.environ.get(BINDING),
    )


def import_engine_ahead(settings: Settings) -> None:
    """Let another process begin to import vLLM, if the engine's processes will be forked from it."""
    if machine.torch_is_for_cuda() is False and thread_count(this_machine(), settings, small=False)[0]:
        prepare_environment(settings, on_cpu=True)
        fork_server.start()


def needs_shared_memory(settings: Settings, *, on_gpu: bool) -> bool:
    """Whether the engine's workers are separate processes; on one GPU they are not."""
    several = settings.tensor_parallel_size * settings.pipeline_parallel_size > 1
    return not on_gpu or several or settings.distributed_executor_backend is not None


def check_shared_memory(settings: Settings, *, on_gpu: bool, place: Path = machine.SHARED_MEMORY) -> None:
    if not (needs_shared_memory(settings, on_gpu=on_gpu) and place.is_dir()):
        return
    free = machine.free_bytes(place)
    if free is not None and free < SHARED_MEMORY_BYTES:
        raise StartupError(
            f"{place} has {megabytes(free)} free and the engine's processes need {megabytes(SHARED_MEMORY_BYTES)}: "
            "give the container more (docker run --shm-size 1g; in Kubernetes an emptyDir of medium Memory), or remove "
            "what other programs left there"
        )


def weight_bytes(model: ServedModel, weights: Weights | None, settings: Settings, dtype: str) -> int:
    """Bytes of the weights in the engine.

    ``weights``: what the folder holds; None if that is to be converted or fetched. Raises StartupError if the
    checkpoint's config describes no model.
    """
    quantized = settings.quantization is not None
    if weights is not None and model.precision is None:
        return weights.in_memory(dtype, quantized=quantized)
    precision = model.precision or stored_precision(model.checkpoint) or ("8bit" if quantized else None)
    size = PRECISIONS[precision] if precision is not None else "float32" if dtype == "float32" else "float16 / bfloat16"
    return count_parameters(model.checkpoint).memory_bytes()[size]


def check_gpu_memory(needed: int, settings: Settings) -> None:
    """Raises StartupError if the weights (``needed`` bytes) are larger than the memory of the GPUs."""
    if not settings.check_memory or settings.distributed_executor_backend == "ray":
        return
    try:
        largest = max((gpu.total for gpu in machine.nvidia_smi()), default=0)
    except OSError:
        # The engine reports this problem better.
        return
    part = needed // (settings.tensor_parallel_size * settings.pipeline_parallel_size)
    share = settings.gpu_memory_utilization or GPU_SHARE
    if 0 < largest * share < part:
        raise StartupError(
            f"out of memory: the weights need {readable_size(part)} on each GPU, and {share:.0%} of the largest is "
            f"{readable_size(int(largest * share))}: use more GPUs (--tensor-parallel-size), a quantized checkpoint, "
            "--load-8bit or --load-4bit, or start anyway with --no-check-memory"
        )


def check_gpu_kernels(model: ServedModel) -> None:
    """Raises StartupError for a model to be quantized to 8 bit on a GPU for which vLLM has no kernels of int8."""
    try:
        newest = machine.compute_capability() if model.precision == "8bit" else 0.0
    except OSError:
        return
    if newest >= NO_INT8_FROM:
        raise StartupError(
            f"8 bit: vLLM computes no int8 on a GPU of compute capability {newest}: use --quantization fp8_per_channel "
            "instead, which quantizes while it loads, or --load-4bit"
        )


def check_context(model: ServedModel, settings: Settings) -> None:
    """Warn of a context without room for an image.

    Raises StartupError for a longer one than the checkpoint's, which vLLM refuses after loading has begun.
    """
    tile = model.checkpoint.tile_tokens
    if settings.max_model_len is not None and settings.max_model_len <= tile:
        log.warning(
            "--max-model-len %d: an image takes %d tokens or more, so requests with images are refused",
            settings.max_model_len,
            tile,
        )
    text = model.checkpoint.config.get("text_config") or model.checkpoint.config
    others = "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in os.environ or any("hf_overrides" in one for one in settings.engine_arg)
    if others or text.get("rope_scaling") or settings.max_model_len is None:
        return
    if settings.max_model_len > model.checkpoint.context_length:
        raise StartupError(
            f"--max-model-len {settings.max_model_len}: the checkpoint's context has "
            f"{model.checkpoint.context_length:,} tokens; choose at most that"
        )


def megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
