"""Memory, processors, disks and GPUs of this machine or container, read from files of the kernel."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
SHARED_MEMORY = Path("/dev/shm")
NVIDIA_SMI_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes."""

    total: int
    available: int
    """Free, or used for caches that the kernel drops when memory is needed."""
    of_container: bool
    """Whether the values are a container's limits."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    total: int
    """Bytes."""
    free: int
    driver: str


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """None if the system is not Linux."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        swap = facts.get("SwapFree", 0)
        found = Memory(facts["MemTotal"], facts["MemAvailable"] + swap, of_container=False)
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for limit, used in limits(proc, cgroups):
        if limit < found.total or limit - used < found.available:
            found = Memory(min(limit, found.total), min(max(0, limit - used), found.available), of_container=True)
    return found


def limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used memory without droppable caches) in bytes of each control group that this process is in."""
    for folder, names in own_groups(proc, cgroups):
        limit_name, used_name, droppable = names
        try:
            limit, used = int((folder / limit_name).read_text()), int((folder / used_name).read_text())
            found = re.search(rf"^{droppable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):
            # There is no limit (the word "max"), or the file belongs to the other version.
            continue
        yield limit, used - (int(found[1]) if found else 0)


VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def own_groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folder of each group that this process is in, outermost first, and the names of its files.

    Inside a container the container's group is the root, even if the kernel names another path.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        root, names = (cgroups / "memory", VERSION_1) if controllers else (cgroups, VERSION_2)
        folder = root
        yield folder, names
        for part in Path(path.lstrip("/")).parts:
            folder = folder / part
            yield folder, names


def cores() -> int:
    """Processors that this process may run on, or use of a container's limit."""
    return min(len(processors()), cpu_limit() or sys.maxsize)


def processors() -> list[int]:
    """The numbers of the processors that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def physical_cores(topology: Path = TOPOLOGY) -> tuple[int, ...]:
    """The first of the processors of each physical core that this process may run on."""
    seen: dict[str, int] = {}
    for number in processors():
        try:
            siblings = (topology / f"cpu{number}" / "topology" / "thread_siblings_list").read_text()
        except OSError:
            siblings = str(number)
        seen.setdefault(siblings.strip(), number)
    return tuple(seen.values())


def cpu_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The whole cores that a container may use, at least 1; None without a limit."""
    found = []
    for folder, names in own_groups(proc, cgroups):
        try:
            if names is VERSION_2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                cpu = cgroups / "cpu"
                quota, period = (cpu / "cpu.cfs_quota_us").read_text(), (cpu / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                found.append(max(1, int(quota) // int(period)))
        except (OSError, ValueError):
            # There is no limit (the word "max"), or no such file.
            continue
    return min(found, default=None)


def cpu_features(proc: Path = PROC) -> frozenset[str]:
    """In the kernel's names, such as avx2 and avx512f; empty if the kernel names none."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", (proc / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def free_bytes(folder: Path) -> int | None:
    """Free bytes for ``folder`` or its nearest parent that exists; None if that cannot be found out."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def torch_is_for_cuda() -> bool | None:
    """Whether the installed torch, and so the engine, computes on a GPU; None if torch is not installed.

    Reads a file of torch, because importing it takes seconds.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *(.+)$", text, re.MULTILINE)
    return found is not None and found[1].strip() != "None"


def nvidia_smi() -> tuple[Gpu, ...]:
    """The GPUs that NVIDIA's driver lists. Raises OSError with a sentence if its tool is missing or fails."""
    found = []
    for line in query_gpus("name,memory.total,memory.free,driver_version"):
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) == 4:
            total, free = (int(part) * 2**20 if part.isdigit() else 0 for part in parts[1:3])
            found.append(Gpu(parts[0], total, free, parts[3]))
    return tuple(found)


def compute_capability() -> float:
    """Of the newest GPU, such as 9.0 of an H100; 0 if there is none. Raises OSError as ``nvidia_smi`` does."""
    return max((float(line) for line in query_gpus("compute_cap") if re.fullmatch(r"\d+\.\d+", line)), default=0.0)


def query_gpus(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    except FileNotFoundError as error:
        raise OSError("there is no nvidia-smi") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"nvidia-smi did not answer in {NVIDIA_SMI_SECONDS:.0f} s") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise OSError(f"nvidia-smi failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.splitlines()
