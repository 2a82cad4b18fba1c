"""Settings of the engine that suit a machine without a GPU, from what the machine and the checkpoint are.

What the user has set is kept. A checkpoint that cannot fit is refused before anything is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.units import readable_size

PROCESSES_BYTES = 1_400_000_000
"""What three processes with torch and vLLM hold besides weights and KV cache, measured with the demo checkpoint."""
WORK_BYTES, WORK_BYTES_4BIT = 0.25, 0.35
"""What they hold more for each parameter: packed copies and intermediate values. With LLaVA-1.5-7B's shape and an empty
KV cache, 17.1 GB were measured in bfloat16, 11.0 in 8 bit and 8.2 in 4 bit."""
FLAG_BITS = {"--load-8bit": 8, "--load-4bit": 4}
LEAST_CONTEXT = 1024
"""Tokens; one image, a question and an answer."""
CONTEXT_STEP = 256
CONTEXTS = 4
"""Full contexts that the KV cache holds if there is room."""
LEAST_CACHE = 2**30
"""Bytes of the KV cache if there is room."""
SEQUENCES = 16
"""It answered 500 concurrent requests in 11.3 s, vLLM's 256 in 13.5 s (2 cores, demo checkpoint), and another caller's
request among them in 0.6 to 0.9 s instead of 3.9 to 5.3 s."""
TOKENS_PER_SEQUENCE = 768
"""A prompt with an image of LLaVA-1.5 and its answer."""
BATCHED_TOKENS = 2048
"""vLLM's default; halved if memory is short."""
HEADROOM = 0.95
"""Share of the free memory that is planned with."""
FEW_CORES = 8
"""vLLM leaves one core to the other processes, which costs a large model half of two cores."""
SMALL_MODEL = 100_000_000
"""Parameters. The steps of a smaller model are so short that its threads mostly wait for one another, on a core that
the server could use: with the demo and two cores, 0.033 s of CPU for a request instead of 0.019."""
SLOWEST = {"float16": 30e9, "bfloat16": 240e9, "float32": 100e9}
"""Operations a second on one core, about half of what was measured with AVX-512."""
STALL_SECONDS = 300
"""Default of --engine-stall-seconds; more if steps are expected to be long."""
UNBOUND = "nobind"
"""What VLLM_CPU_OMP_THREADS_BIND is if vLLM leaves the threads to us."""
SLACK = 10
"""An engine counts as hanging if a step takes this many times as long as expected."""


@dataclass(frozen=True, slots=True)
class CpuMachine:
    free: int | None
    """Bytes; None if the system does not say."""
    cores: tuple[int, ...]
    """One processor of each physical core that this process may run on."""
    features: frozenset[str]
    """Of the processor, in the kernel's names."""
    limit: int | None = None
    """Cores that a container may use, if that is fewer."""
    binding: str | None = None
    """VLLM_CPU_OMP_THREADS_BIND, if it is set."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    stored_dtype: str | None
    context: int
    parameters: int
    cache_numbers: int
    """Numbers that the KV cache holds for a token."""
    weights: Callable[[str], int]
    """--dtype -> bytes of the weights in memory."""
    quantized: Mapping[str, int]
    """``--load-8bit`` and ``--load-4bit`` -> bytes of the weights; empty if they are quantized already."""
    bits: int = 16
    """Of a weight of the text model's linear layers; all that are not quantized count as 16."""


@dataclass(frozen=True, slots=True)
class CpuPlan:
    dtype: str
    weights: int
    context: int
    cache_bytes: int
    needed: int
    """Bytes of everything."""
    max_num_seqs: int
    max_num_batched_tokens: int | None
    """None leaves it to vLLM."""
    forks: bool
    """Whether vLLM's processes are forked (``fork_server``): not if vLLM binds their threads to cores."""
    thread_count: int
    step_seconds: int
    """After so long a step counts as hanging."""
    sentences: tuple[str, str, str]
    """What was chosen and why: precision, memory and context, threads."""


def plan(machine: CpuMachine, checkpoint: CheckpointFacts, settings: Settings) -> CpuPlan:
    """Raises StartupError with what would fit if the checkpoint does not, unless ``--no-check-memory`` is set."""
    dtype, reason = precision(checkpoint, settings.dtype, machine.features)
    weights = checkpoint.weights(dtype)
    token = checkpoint.cache_numbers * (4 if dtype == "float32" else 2)
    copies = settings.data_parallel_size
    fixed = fixed_bytes(weights, checkpoint, copies)
    spare = None if machine.free is None else (int(machine.free * HEADROOM) - fixed) // copies
    context = settings.max_model_len or checkpoint.context
    cache = cache_bytes(context, token, spare, settings)
    if settings.max_model_len is None and cache < context * token:
        context = max(CONTEXT_STEP, cache // token // CONTEXT_STEP * CONTEXT_STEP)
    total = fixed + cache * copies
    if machine.free is not None and total > machine.free and settings.check_memory:
        raise does_not_fit(machine.free, machine.features, dtype, weights, cache, total, checkpoint, settings)
    sequences = settings.max_num_seqs or max(1, min(SEQUENCES, cache // token // TOKENS_PER_SEQUENCE))
    # Memory is short if the context had to be.
    short = settings.max_model_len is None and context < checkpoint.context
    batched = BATCHED_TOKENS // 2 if short else BATCHED_TOKENS
    forks, count, why = thread_count(machine, settings, small=checkpoint.parameters < SMALL_MODEL)
    operations = 2.0 * checkpoint.parameters * batched
    step = max(STALL_SECONDS, round(SLACK * operations / (SLOWEST.get(dtype, SLOWEST["bfloat16"]) * count)))
    shorter = "" if context == checkpoint.context else f" of the checkpoint's {checkpoint.context:,}"
    room = "" if machine.free is None else f", {readable_size(machine.free)} are free"
    return CpuPlan(
        dtype,
        weights,
        context,
        cache,
        total,
        sequences,
        max(batched, sequences) if short else None,
        forks,
        count,
        step,
        (
            f"precision {dtype}: {reason}",
            f"memory {readable_size(total)} (weights {readable_size(weights)}, KV cache {readable_size(cache)}){room}; "
            f"context {context:,} tokens{shorter}, {sequences} {'answer' if sequences == 1 else 'answers'} at once",
            f"threads {count}: {why}" if machine.binding is None else f"threads: {why}",
        ),
    )


def precision(checkpoint: CheckpointFacts, chosen: str, features: frozenset[str]) -> tuple[str, str]:
    """(dtype of the computation, the reason). Raises StartupError."""
    if checkpoint.bits == 8 and "amx_int8" in features:
        # Other types end vLLM's worker at the first step: "scale_C: scalar path not implemented".
        if chosen not in ("auto", "bfloat16"):
            raise StartupError(
                f"8-bit weights are computed in bfloat16 on this processor (AMX): leave out --dtype {chosen}"
            )
        return "bfloat16", "the 8-bit instructions of this processor need it"
    if chosen != "auto":
        return chosen, "set by --dtype"
    stored = checkpoint.stored_dtype
    x86 = "avx2" in features or "avx512f" in features
    if stored == "float32" or stored is None or not x86:
        return stored or "bfloat16", "as the checkpoint is stored"
    if "avx512f" not in features:
        return "float32", "this processor computes 16-bit numbers slowly (it has no AVX-512)"
    # AVX512-FP16 is no reason to stay: with AMX for bfloat16 beside it, it took 3 to 4 times as long for a prompt.
    if stored == "float16" and "amx_fp16" not in features:
        return "bfloat16", "the checkpoint is float16, which this processor computes slowly"
    return stored, "as the checkpoint is stored"


def fixed_bytes(weights: int, checkpoint: CheckpointFacts, copies: int) -> int:
    """Bytes of everything but the KV cache."""
    work = (WORK_BYTES_4BIT if checkpoint.bits == 4 else WORK_BYTES) * checkpoint.parameters
    return PROCESSES_BYTES + (weights + int(work)) * copies


def cache_bytes(context: int, token: int, spare: int | None, settings: Settings) -> int:
    """Bytes of the KV cache: some full contexts, or what is spare, but not less than the shortest useful context.

    ``token``: bytes for a token. A context that the user has set must fit whole.
    """
    if settings.cpu_kvcache_space is not None:
        return settings.cpu_kvcache_space * 2**30
    wished = max(CONTEXTS * context * token, LEAST_CACHE)
    least = context if settings.max_model_len is not None else min(context, LEAST_CONTEXT)
    return wished if spare is None else max(min(wished, spare), least * token)


def does_not_fit(
    free: int,
    features: frozenset[str],
    dtype: str,
    weights: int,
    cache: int,
    total: int,
    checkpoint: CheckpointFacts,
    settings: Settings,
) -> StartupError:
    space, copies = settings.cpu_kvcache_space, settings.data_parallel_size
    named = "" if space is None else f", --cpu-kvcache-space {space}"
    others = {
        flag: fixed_bytes(size, replace(checkpoint, bits=FLAG_BITS[flag]), copies)
        for flag, size in checkpoint.quantized.items()
    }
    if dtype == "float32" and "avx512f" in features:
        others["--dtype bfloat16"] = fixed_bytes(checkpoint.weights("bfloat16"), checkpoint, copies)
    needed = {flag: size + cache * copies for flag, size in others.items()}
    would = [f"{flag} ({readable_size(size)})" for flag, size in needed.items() if size <= free]
    if settings.max_model_len is not None:
        would.append("a smaller --max-model-len")
    if space is not None:
        would.append("a smaller --cpu-kvcache-space")
    if copies > 1:
        would.append("a smaller --data-parallel-size")
    advice = f"pass {' or '.join(would)}" if would else "serve a smaller checkpoint"
    return StartupError(
        f"out of memory: the weights ({readable_size(weights)}) and the KV cache ({readable_size(cache)}{named}) need "
        f"{readable_size(total)} with the engine's processes, and {readable_size(free)} are free: make room, {advice}, "
        "or start anyway with --no-check-memory"
    )


def thread_count(machine: CpuMachine, settings: Settings, *, small: bool) -> tuple[bool, int, str]:
    """(whether vLLM leaves the threads to us, their number, the reason)."""
    count = len(machine.cores)
    if machine.binding is not None:
        return machine.binding == UNBOUND, count, f"VLLM_CPU_OMP_THREADS_BIND is {machine.binding}"
    workers = settings.tensor_parallel_size * settings.pipeline_parallel_size * settings.data_parallel_size
    if machine.limit is not None and machine.limit < count:
        # Bound threads of two containers would share the same cores while others are idle.
        return True, machine.limit, "the container's limit"
    if workers > 1 or count > FEW_CORES:
        return False, max(1, count - 1), "vLLM binds them and leaves a core to the other processes"
    if small:
        return True, max(1, count - 1), "the server has a core for itself, because the model is small"
    return True, count, "all physical cores, because they are few"
