"""What a fleet's models take, and what its machine has."""

import logging
from pathlib import Path
from typing import Any

import pytest

from llava_api.cli import machine
from llava_api.cli.fleet import needs
from llava_api.cli.fleet.models_file import FleetModel, read_models
from llava_api.cli.fleet.supervisor import Fleet
from llava_api.cli.machine import Memory
from llava_api.engine.cpu_plan import HEADROOM, PROCESSES_BYTES


def read(tmp_path: Path, *tables: str) -> list[FleetModel]:
    file = tmp_path / "models.toml"
    file.write_text("".join(f"[[models]]\n{table}\n" for table in tables))
    return read_models(file, {})


async def nothing(member: object) -> Any: ...


def test_models_share_a_gpu_if_their_parts_of_its_memory_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "torch_is_for_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    members, capacity = needs.weigh(
        read(
            tmp_path,
            "model = 'a'\ngpus = [0]\ngpu_memory_utilization = 0.5",
            "model = 'b'\ngpus = [0]\ngpu_memory_utilization = 0.5",
            "model = 'c'\ngpus = [0]",
            "model = 'd'\nexclusive = 'x'",
            "model = 'e'\ntensor_parallel_size = 2\nexclusive = 'x'",
        )
    )
    assert [member.needs for member in members[2:]] == [
        {"gpu 0": 0.92},
        {"gpu 1": 0.92, "group x": 1},
        {"gpu 0": 0.92, "gpu 1": 0.92, "group x": 1},
    ]
    fleet = Fleet(members, capacity, nothing, nothing)
    a, b, c, d, e = members
    assert fleet.short(b, [a]) == set()
    assert fleet.short(c, [a]) == {"gpu 0"}
    assert fleet.short(d, [a, b]) == set()
    assert fleet.short(e, [a, d]) == {"gpu 0", "gpu 1", "group x"}


async def test_memory_is_judged_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a process of its own, as torch's import is not the fleet's."""
    monkeypatch.setattr(machine, "memory", lambda: Memory(8_000_000_000, 6_000_000_000, of_container=False))
    members, capacity = needs.weigh(
        read(
            tmp_path,
            "model = 'llava-tiny-1.5'",
            "model = 'llava-tiny-1.6'",
            "model = 'llava-tiny-1.6'\nname = 'large'\ncpu_kvcache_space = 100",
        )
    )
    assert capacity == {"memory": 6_000_000_000 * HEADROOM}
    fleet = Fleet(members, capacity, nothing, nothing)
    fleet.judged = False
    with caplog.at_level(logging.WARNING):
        await needs.judge(fleet)
    assert fleet.judged
    small, other, large = members
    for member in (small, other):
        # The least KV cache is 1 GiB, and the weights are small.
        assert PROCESSES_BYTES + 2**30 < member.needs["memory"] < PROCESSES_BYTES + 1.1 * 2**30
    assert fleet.short(other, [small]) == set()
    assert fleet.short(other, [small, small]) == {"memory"}
    assert large.needs == {}
    assert "large cannot be loaded as it is: out of memory" in caplog.text
