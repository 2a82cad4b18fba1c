"""What was found by reading vLLM's code for GPUs; none is needed to test it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llava_api.engine import vllm_options
from llava_api.engine.base import GenerationRequest, ModelToLoad, Sampling
from llava_api.engine.vllm_engine import AsyncLLM, VllmEngine, sampling_params
from llava_api.engine.vllm_options import prepare_environment, prepare_start
from llava_api.settings import Settings
from llava_api.vision.families import LLAVA_1_5
from llava_api.vision.normalisation import CLIP
from tests.support.serve import have_ended


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    made = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "cuda")}
    monkeypatch.setattr(os, "environ", made)
    return made


def test_the_engine_is_spawned_not_forked(environment: dict[str, str]) -> None:
    prepare_environment(Settings(), on_cpu=False)
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    environment["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    prepare_environment(Settings(), on_cpu=False)
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


def test_flashinfers_sampler_is_used_only_with_the_compiler_that_it_needs(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.touch()
    assert vllm_options.has_nvcc()
    prepare_environment(Settings(), on_cpu=False)
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment
    compiler.unlink()
    prepare_environment(Settings(), on_cpu=True)
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment
    prepare_environment(Settings(), on_cpu=False)
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_nothing_is_compiled_on_a_cpu_unless_that_is_wanted(environment: dict[str, str]) -> None:
    prepare_environment(Settings(), on_cpu=False)
    prepare_environment(Settings(enforce_eager=False), on_cpu=True)
    assert "TORCH_COMPILE_DISABLE" not in environment
    prepare_environment(Settings(), on_cpu=True)
    assert environment["TORCH_COMPILE_DISABLE"] == "1"


def test_vllms_own_limit_of_a_step_is_longer_than_ours(environment: dict[str, str]) -> None:
    prepare_start(Settings(engine_stall_seconds=900), on_cpu=True)
    assert int(environment["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"]) > 900


@pytest.mark.parametrize(("seed", "choices", "last"), [(2**63 - 1, 2, 2**63 - 1), (5, 3, 7), (-(2**63), 1, -(2**63))])
def test_the_seed_of_the_last_choice_fits_into_64_bits(seed: int, choices: int, last: int) -> None:
    request = GenerationRequest("r", [1], (), Sampling(1.0, seed=seed), 1, choices=choices)
    made = sampling_params(request).seed
    assert made is not None
    assert made + choices - 1 == last


def engine_of(copies: int) -> VllmEngine:
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=16), parallel_config=SimpleNamespace(data_parallel_size=copies)
    )
    llm: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=4096),
        vllm_config=config,
        engine_core=SimpleNamespace(resources=SimpleNamespace()),
    )
    return VllmEngine(llm)


def test_copies_of_the_model_answer_more_at_once() -> None:
    assert (engine_of(1).max_num_seqs, engine_of(3).max_num_seqs) == (16, 48)


def test_batch_sizes_are_those_of_vllm_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def from_engine_args(arguments: Any, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=1),
            vllm_config=SimpleNamespace(
                scheduler_config=SimpleNamespace(max_num_seqs=1), parallel_config=SimpleNamespace(data_parallel_size=1)
            ),
            engine_core=SimpleNamespace(resources=SimpleNamespace()),
        )

    monkeypatch.setattr(AsyncLLM, "from_engine_args", from_engine_args)
    VllmEngine.start(Settings(), ModelToLoad("m", LLAVA_1_5, CLIP), on_cpu=False)
    assert given["usage_context"].value == "OPENAI_API_SERVER"


WITH_TWO_COPIES = """
import time
from types import SimpleNamespace

if __name__ == "__main__":
    from llava_api.engine.base import ModelToLoad
    from llava_api.engine.vllm_options import prepare_environment, prepare_start
    from llava_api.settings import Settings
    from llava_api.vision.families import LLAVA_1_5
    from llava_api.vision.normalisation import CLIP

    settings = Settings(data_parallel_size=2)
    prepare_environment(settings, on_cpu=True)
    prepare_start(settings, on_cpu=True)
    from llava_api.engine.vllm_engine import AsyncLLM, VllmEngine
    from vllm.config import ParallelConfig
    from vllm.v1.engine.coordinator import DPCoordinator

    def start_without_copies(arguments, **options):
        coordinator = DPCoordinator(ParallelConfig(data_parallel_size=2))
        print(coordinator.proc.pid, flush=True)
        time.sleep(600)

    AsyncLLM.from_engine_args = start_without_copies
    VllmEngine.start(settings, ModelToLoad("m", LLAVA_1_5, CLIP), on_cpu=True)
"""


def test_a_killed_server_leaves_no_coordinator_of_its_copies(tmp_path: Path) -> None:
    """vLLM starts it before the copies; without them the test takes a third of the time."""
    (tmp_path / "server.py").write_text(WITH_TWO_COPIES)
    command = [sys.executable, str(tmp_path / "server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            coordinator = int(server.stdout.readline())
            children = psutil.Process(server.pid).children(recursive=True)
            assert coordinator in [child.pid for child in children]
        finally:
            server.kill()
    assert have_ended(children)
