"""What is chosen on a machine without a GPU, for checkpoints of real size."""

from dataclasses import replace

import pytest

from llava_api.engine.cpu_plan import CheckpointFacts, CpuMachine, CpuPlan, plan
from llava_api.errors import StartupError
from llava_api.settings import Settings

GB = 10**9
AVX512 = frozenset({"avx2", "avx512f", "avx512_bf16"})
HOME = CpuMachine(24 * GB, (0, 1), AVX512)
PARAMETERS = 7_063_000_000
TOKEN = 2 * 32 * 4096
"""Numbers in the KV cache: keys and values of 32 layers."""
SEVEN_B = CheckpointFacts(
    stored_dtype="float16",
    context=4096,
    parameters=PARAMETERS,
    cache_numbers=TOKEN,
    weights=lambda dtype: PARAMETERS * (4 if dtype == "float32" else 2),
    quantized={"--load-8bit": 7_600_000_000, "--load-4bit": 4_500_000_000},
)
EIGHT_BIT = replace(SEVEN_B, weights=lambda dtype: 7_600_000_000, quantized={}, bits=8)
FOUR_BIT = replace(SEVEN_B, weights=lambda dtype: 4_500_000_000, quantized={}, bits=4)


@pytest.mark.parametrize(
    ("stored", "features", "chosen"),
    [
        ("float16", AVX512, "bfloat16"),
        ("float16", AVX512 | {"avx512_fp16", "amx_bf16"}, "bfloat16"),
        ("float16", AVX512 | {"amx_fp16"}, "float16"),
        ("float16", frozenset({"avx2"}), "float32"),
        ("bfloat16", frozenset({"avx2"}), "float32"),
        ("bfloat16", AVX512, "bfloat16"),
        ("float32", AVX512, "float32"),
        ("float16", frozenset({"asimd"}), "float16"),
    ],
)
def test_precision(stored: str, features: frozenset[str], chosen: str) -> None:
    machine = replace(HOME, features=features, free=80 * GB)
    made = plan(machine, replace(SEVEN_B, stored_dtype=stored), Settings())
    assert made.dtype == chosen
    assert made.sentences[0].startswith(f"precision {chosen}: ")
    assert plan(machine, replace(SEVEN_B, stored_dtype=stored), Settings(dtype="float16")).dtype == "float16"


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_eight_bits_are_computed_in_what_the_processors_kernel_takes(stored: str) -> None:
    machine = replace(HOME, features=AVX512 | {"amx_int8", "amx_bf16"})
    checkpoint = replace(EIGHT_BIT, stored_dtype=stored)
    assert plan(machine, checkpoint, Settings()).dtype == "bfloat16"
    assert plan(HOME, checkpoint, Settings(dtype="float16")).dtype == "float16"
    with pytest.raises(StartupError, match="leave out --dtype float16"):
        plan(machine, checkpoint, Settings(dtype="float16"))


@pytest.mark.parametrize(
    ("checkpoint", "measured"), [(SEVEN_B, 17.1), (EIGHT_BIT, 11.0), (FOUR_BIT, 8.2)], ids=["16", "8", "4"]
)
def test_memory_is_foreseen_within_five_percent(checkpoint: CheckpointFacts, measured: float) -> None:
    """Measured with an empty cache, which takes memory as it fills."""
    made = plan(HOME, checkpoint, Settings(cpu_kvcache_space=4))
    assert made.cache_bytes == 4 * 2**30
    assert (made.needed - made.cache_bytes) / GB == pytest.approx(measured, rel=0.05)


def test_the_cache_holds_full_contexts_if_there_is_room() -> None:
    made = plan(replace(HOME, free=64 * GB), SEVEN_B, Settings())
    assert made.context == 4096
    assert made.cache_bytes == 4 * 4096 * TOKEN * 2
    assert made.max_num_seqs == 16
    assert made.max_num_batched_tokens is None


def test_less_memory_means_fewer_answers_then_a_shorter_context() -> None:
    made = plan(HOME, SEVEN_B, Settings())
    assert made.context == 4096
    assert made.needed <= 24 * GB
    assert 1 <= made.max_num_seqs < 16
    made = plan(replace(HOME, free=19 * GB), SEVEN_B, Settings())
    assert 1024 <= made.context < 4096
    assert made.cache_bytes >= made.context * TOKEN * 2
    assert "of the checkpoint's 4,096" in made.sentences[1]
    assert made.max_num_batched_tokens == 1024


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(StartupError, match="out of memory: the weights") as refused:
        plan(replace(HOME, free=16 * GB), SEVEN_B, Settings())
    assert "pass --load-8bit (11.3 GB) or --load-4bit" in str(refused.value)
    with pytest.raises(StartupError, match="out of memory") as refused:
        plan(replace(HOME, free=10 * GB), SEVEN_B, Settings())
    assert "--load-8bit" not in str(refused.value)
    assert "pass --load-4bit (8.9 GB)" in str(refused.value)
    assert plan(replace(HOME, free=10 * GB), FOUR_BIT, Settings()).context == 2048
    with pytest.raises(StartupError, match="serve a smaller checkpoint"):
        plan(replace(HOME, free=8 * GB), SEVEN_B, Settings())
    with pytest.raises(StartupError, match=r"--dtype bfloat16 \(18.4 GB\)"):
        plan(HOME, SEVEN_B, Settings(dtype="float32"))
    with pytest.raises(StartupError, match=r"--load-8bit \(.*\) or a smaller --data-parallel-size"):
        plan(replace(HOME, free=22 * GB), SEVEN_B, Settings(data_parallel_size=2))
    with pytest.raises(StartupError, match="a smaller --max-model-len"):
        plan(replace(HOME, free=19 * GB), SEVEN_B, Settings(max_model_len=4096))
    with pytest.raises(StartupError, match="--cpu-kvcache-space 90000"):
        plan(HOME, SEVEN_B, Settings(cpu_kvcache_space=90_000))
    assert plan(replace(HOME, free=9 * GB), SEVEN_B, Settings(check_memory=False)).context == 1024


def test_what_the_user_sets_is_kept() -> None:
    settings = Settings(max_model_len=2000, max_num_seqs=7, cpu_kvcache_space=3, dtype="float32")
    made = plan(replace(HOME, free=64 * GB), SEVEN_B, settings)
    assert (made.context, made.max_num_seqs, made.cache_bytes, made.dtype) == (2000, 7, 3 * 2**30, "float32")
    # A space of the user that is too small for the context shortens it.
    assert plan(HOME, SEVEN_B, Settings(cpu_kvcache_space=1)).context == 2048


def test_threads() -> None:
    """How many compute the model, and whether vLLM binds them itself, which rules out to fork its processes."""

    def chosen(made: CpuPlan) -> tuple[bool, int]:
        return made.forks, made.thread_count

    assert chosen(plan(HOME, EIGHT_BIT, Settings())) == (True, 2)
    assert chosen(plan(HOME, replace(EIGHT_BIT, parameters=2_300_000), Settings())) == (True, 1)
    assert chosen(plan(replace(HOME, cores=tuple(range(0, 64, 2))), EIGHT_BIT, Settings())) == (False, 31)
    assert chosen(plan(replace(HOME, cores=tuple(range(64)), limit=3), EIGHT_BIT, Settings())) == (True, 3)
    assert not plan(HOME, FOUR_BIT, Settings(tensor_parallel_size=2)).forks
    given = plan(replace(HOME, binding="0-1"), EIGHT_BIT, Settings())
    assert (given.forks, given.sentences[2]) == (False, "threads: VLLM_CPU_OMP_THREADS_BIND is 0-1")
    assert plan(replace(HOME, binding="nobind"), EIGHT_BIT, Settings()).forks


def test_a_long_step_has_time() -> None:
    fast = plan(replace(HOME, cores=tuple(range(64))), EIGHT_BIT, Settings())
    slow = plan(replace(HOME, cores=(0,)), EIGHT_BIT, Settings(dtype="float16"))
    assert fast.step_seconds == 300
    # 2,048 tokens through 7 billion weights, at 30 GFLOP a second.
    assert slow.step_seconds > 10 * 2048 * 2 * 7 // 30


def test_four_bits_on_a_processor_without_avx512() -> None:
    assert plan(replace(HOME, features=frozenset({"avx2"})), FOUR_BIT, Settings()).dtype == "float32"
