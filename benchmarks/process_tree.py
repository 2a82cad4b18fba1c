"""CPU time and memory of a process and all its descendants, from ``/proc``. Linux only."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def read_stats() -> dict[int, tuple[int, float]]:
    """Process -> (parent, CPU seconds, those of its ended children included)."""
    stats: dict[int, tuple[int, float]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                # The command's name stands in brackets and may hold anything, so the fields begin behind the last.
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                stats[int(name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return stats


def tree_of(root: int, stats: dict[int, tuple[int, float]]) -> list[int]:
    found = [root] if root in stats else []
    for process in found:
        found += [child for child, (parent, _) in stats.items() if parent == process]
    return found


def cpu_seconds(root: int) -> float:
    stats = read_stats()
    return sum(stats[process][1] for process in tree_of(root, stats))


def memory_bytes(root: int) -> int:
    """Of a process and all below it."""
    return sum(own_memory_bytes(process) for process in tree_of(root, read_stats()))


def own_memory_bytes(process: int) -> int:
    """Proportional set size: a page that several processes share is counted once in all."""
    with suppress(OSError):
        for line in Path("/proc", str(process), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def machine_cpu_seconds() -> float:
    """CPU time that all processes of the machine have used."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, soft_irq = map(int, fields[:7])
    return (user + nice + system + irq + soft_irq) / TICKS


class MemoryWatch:
    """Samples the memory of a process tree in a thread, while it is entered."""

    def __init__(self, root: int, every_seconds: float = 0.25) -> None:
        self.root = root
        self.every_seconds = every_seconds
        self.samples: list[tuple[float, int]] = []
        """(time.monotonic(), bytes)"""
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while True:
            self.samples.append((time.monotonic(), memory_bytes(self.root)))
            if self.stop.wait(self.every_seconds):
                return

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    @property
    def peak_bytes(self) -> int:
        return max(size for _, size in self.samples)
