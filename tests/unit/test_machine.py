"""What the machine has, read from a kernel's files as they are on different machines; and from this one's own."""

import os
from pathlib import Path

import pytest

from llava_api.chat.model import open_model
from llava_api.checkpoints.size import Precision
from llava_api.checkpoints.whole import check_whole
from llava_api.cli import machine
from llava_api.cli.flags import demo_folder
from llava_api.cli.serve import ready_model
from llava_api.cli.start_checks import (
    check_gpu_kernels,
    check_gpu_memory,
    check_shared_memory,
    check_start,
    weight_bytes,
)
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tests.support.quantized import WAYS, quantized_copy

GIB = 2**30


def kernel(folder: Path, cgroup: str, files: dict[str, str], *, available: int = 8 * GIB) -> machine.Memory:
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\nSwapFree: 0 kB\n"
    )
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    found = machine.memory(proc, cgroups)
    assert found is not None
    return found


def test_a_machine_without_a_limit(tmp_path: Path) -> None:
    assert kernel(tmp_path, "0::/\n", {}) == machine.Memory(16 * GIB, 8 * GIB, of_container=False)


def test_a_limit_of_version_2_with_the_caches_of_files_that_may_be_dropped(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{4 * GIB}\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
    }
    assert kernel(tmp_path, "0::/\n", files) == machine.Memory(4 * GIB, 3 * GIB, of_container=True)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "a/memory.max": f"{6 * GIB}\n",
        "a/memory.current": f"{5 * GIB}\n",
        "a/memory.stat": "inactive_file 0\n",
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "5\n",
        "a/b/memory.stat": "inactive_file 0\n",
    }
    assert kernel(tmp_path, "0::/a/b\n", files) == machine.Memory(6 * GIB, 1 * GIB, of_container=True)


def test_a_limit_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/memory.stat": "total_inactive_file 0\n",
        "memory/pod/memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory/pod/memory.usage_in_bytes": f"{1 * GIB}\n",
        "memory/pod/memory.stat": "total_inactive_file 0\n",
    }
    cgroup = "9:name=systemd:/\n4:memory:/pod\n0::/\n"
    assert kernel(tmp_path, cgroup, files) == machine.Memory(2 * GIB, 1 * GIB, of_container=True)


def test_this_machine() -> None:
    found = machine.memory()
    assert found is not None
    assert 0 < found.available <= found.total
    assert machine.cores() >= 1
    assert 1 <= len(machine.physical_cores()) <= len(machine.processors())
    assert machine.torch_is_for_cuda() is False


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert machine.memory(tmp_path, tmp_path) is None
    assert machine.cpu_features(tmp_path) == frozenset()


def test_the_nearest_folder_tells_how_much_is_free(tmp_path: Path) -> None:
    assert machine.free_bytes(tmp_path / "not" / "there") is not None


def nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_gpus_as_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    nvidia_smi(tmp_path, "echo 'NVIDIA H200, 143771, 143000, 570.1'; echo 'Odd, one, [N/A], 24, 570.1'")
    first, second = machine.nvidia_smi()
    assert first == machine.Gpu("NVIDIA H200", 143771 * 2**20, 143000 * 2**20, "570.1")
    assert (second.total, second.free) == (0, 24 * 2**20)
    nvidia_smi(tmp_path, "echo 'couldn''t communicate with the NVIDIA driver' >&2; exit 9")
    with pytest.raises(OSError, match="communicate with the NVIDIA driver"):
        machine.nvidia_smi()


def test_a_limit_of_cores(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/pod/container\n")
    groups = tmp_path / "groups"
    (groups / "pod" / "container").mkdir(parents=True)
    assert machine.cpu_limit(tmp_path, groups) is None
    (groups / "pod" / "container" / "cpu.max").write_text("max 100000\n")
    (groups / "pod" / "cpu.max").write_text("250000 100000\n")
    assert machine.cpu_limit(tmp_path, groups) == 2
    (groups / "pod" / "container" / "cpu.max").write_text("50000 100000\n")
    assert machine.cpu_limit(tmp_path, groups) == 1


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processors", lambda: [0, 1, 2, 5])
    for number, siblings in ((0, "0,4"), (1, "1,5"), (5, "1,5")):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert machine.physical_cores(tmp_path) == (0, 1, 2)


# What stops a start


def gigabytes(number: float) -> int:
    return int(number * 1e9)


def test_weights_that_no_gpu_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    nvidia_smi(tmp_path, "echo 'Small, 8192, 8000, 570.1'; echo 'Large, 24576, 24000, 570.1'")
    with pytest.raises(StartupError, match="on each GPU"):
        check_gpu_memory(gigabytes(70), Settings())
    check_gpu_memory(gigabytes(70), Settings(tensor_parallel_size=4))
    check_gpu_memory(gigabytes(20), Settings())
    with pytest.raises(StartupError, match="50% of the largest"):
        check_gpu_memory(gigabytes(20), Settings(gpu_memory_utilization=0.5))
    nvidia_smi(tmp_path, "exit 1")
    check_gpu_memory(gigabytes(70), Settings())


def test_eight_bit_on_a_gpu_without_kernels_of_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    model = open_model(str(demo_folder() / "llava-tiny-1.5"), ("m",), Settings(load_8bit=True))
    nvidia_smi(tmp_path, "echo 10.0")
    with pytest.raises(StartupError, match=r"compute capability 10\.0: use --quantization fp8_per_channel"):
        check_gpu_kernels(model)
    check_gpu_kernels(open_model(str(demo_folder() / "llava-tiny-1.5"), ("m",), Settings(load_4bit=True)))
    for script in ("echo 9.0", "echo '[N/A]'", "exit 1"):
        nvidia_smi(tmp_path, script)
        check_gpu_kernels(model)


def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    check_shared_memory(Settings(), on_gpu=False, place=tmp_path)
    # /proc is a file system without any room.
    with pytest.raises(StartupError, match=r"0 MiB free.*--shm-size"):
        check_shared_memory(Settings(), on_gpu=False, place=Path("/proc"))
    with pytest.raises(StartupError, match="--shm-size"):
        check_shared_memory(Settings(tensor_parallel_size=2), on_gpu=True, place=Path("/proc"))
    check_shared_memory(Settings(), on_gpu=True, place=Path("/proc"))
    check_shared_memory(Settings(), on_gpu=False, place=tmp_path / "none")


LOADED: dict[Precision, Settings] = {"8bit": Settings(load_8bit=True), "4bit": Settings(load_4bit=True)}


@pytest.mark.parametrize("precision", LOADED)
def test_what_cannot_fit_is_refused_before_it_is_quantized(tmp_path: Path, precision: Precision) -> None:
    cache = tmp_path / "cache"
    settings = LOADED[precision].model_copy(update={"cache_dir": str(cache), "cpu_kvcache_space": 90_000})
    with pytest.raises(StartupError, match="out of memory: the weights"):
        ready_model("llava-tiny-1.5", settings)
    assert not cache.exists()


def test_a_context_longer_than_the_checkpoints_is_refused_before_it_is_quantized(tmp_path: Path) -> None:
    settings = Settings(load_8bit=True, cache_dir=str(tmp_path / "cache"), max_model_len=4096)
    with pytest.raises(StartupError, match="--max-model-len 4096: the checkpoint's context has 2,048 tokens"):
        ready_model("llava-tiny-1.5", settings)
    assert not (tmp_path / "cache").exists()
    assert ready_model("llava-tiny-1.5", Settings(max_model_len=2048)).cpu_plan is not None


@pytest.mark.parametrize(("context", "warned"), [(64, True), (65, False), (None, False)])
def test_a_context_without_room_for_an_image_is_warned_of(
    caplog: pytest.LogCaptureFixture, context: int | None, warned: bool
) -> None:
    assert ready_model("llava-tiny-1.5", Settings(max_model_len=context)).checkpoint.tile_tokens == 64
    assert ("an image takes 64 tokens or more" in caplog.text) == warned


@pytest.mark.parametrize("precision", LOADED)
def test_the_plan_made_before_quantizing_suits_what_is_quantized(tmp_path: Path, precision: Precision) -> None:
    before = ready_model("llava-tiny-1.5", LOADED[precision].model_copy(update={"cache_dir": str(tmp_path)})).cpu_plan
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    after = check_start(open_model(str(folder), ("m",), Settings()), Settings())
    assert before is not None
    assert after is not None
    assert (before.dtype, before.context, before.cache_bytes) == (after.dtype, after.context, after.cache_bytes)
    assert before.dtype == "bfloat16"
    assert before.weights == pytest.approx(after.weights, rel=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_the_size_of_quantized_weights_is_known_without_their_files(tmp_path: Path, way: str) -> None:
    """As for a hub id, whose weights the engine fetches."""
    folder = quantized_copy(demo_folder() / "llava-tiny-1.5", tmp_path / "quantized", way)
    model = open_model(str(folder), ("m",), Settings())
    known = weight_bytes(model, check_whole(folder), Settings(), "bfloat16")
    assert weight_bytes(model, None, Settings(), "bfloat16") == pytest.approx(known, rel=0.1)
