"""Does this server's memory stay flat? ``python -m benchmarks.memory``: exit code 1 where it does not.

2,000 different 1024 x 768 images after a warm-up of 300, in batches of 100; the memory of a batch is the median of
the samples (proportional set size of the whole process tree) taken while it ran. Flat means that no batch is more than
5 % above the first one after the warm-up. The API process is shown by itself as well: the rest is vLLM's own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import endless_copy
from benchmarks.figures import checked
from benchmarks.images import Images
from benchmarks.load import read_answer, send
from benchmarks.machine import describe
from benchmarks.process_tree import MemoryWatch, own_memory_bytes
from benchmarks.servers import Contestant, Server, our_command, serving
from benchmarks.workloads import ANSWER_TOKENS, image_body
from llava_api.cli.flags import demo_folder

SIZE = (1024, 768)
CONCURRENCY = 16
GROWTH_BAR = 1.05
CACHE_FLAG = "--image-cache-bytes"
CACHE_BYTES = 8_000_000
"""Small enough to be full before the warm-up ends: a cache that fills up is no leak."""


def cache_flags() -> tuple[str, ...]:
    command = [sys.executable, "-m", "llava_api", "serve", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return (CACHE_FLAG, str(CACHE_BYTES)) if CACHE_FLAG in help_text else ()


def batches(server: Server, images: Images, count: int, batch: int) -> Iterator[int]:
    """Median bytes of the server's process tree in each batch."""
    for first in range(0, count, batch):
        bodies = [image_body(jpeg) for jpeg in images.jpegs(range(first, min(first + batch, count)))]
        with MemoryWatch(server.process) as memory:
            exchanges = send(server.port, bodies, CONCURRENCY)
        checked([read_answer(exchange, ANSWER_TOKENS) for exchange in exchanges], f"images from {first}")
        yield round(statistics.median(size for _, size in memory.samples))


def measure(chosen: argparse.Namespace, scratch: Path) -> list[int]:
    """Bytes of each batch, those of the warm-up first."""
    folder = endless_copy(demo_folder() / "llava-tiny-1.5", scratch / "checkpoint")
    ours = Contestant("ours", partial(our_command, extra=cache_flags()), {})
    found: list[int] = []
    with serving(ours, folder, scratch) as server:
        images = Images(SIZE, chosen.seed)
        for size in batches(server, images, chosen.warm_up + chosen.requests, chosen.batch):
            found.append(size)
            own = own_memory_bytes(server.process) / 2**20
            line = f"{len(found) * chosen.batch:>6} images  {size / 2**20:7.0f} MiB, the API process {own:5.0f} MiB"
            print(line, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--warm-up", type=int, default=300)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every batch to this file")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(chosen, Path(scratch))
    after = found[chosen.warm_up // chosen.batch :]
    growth = max(after) / after[0]
    print(
        f"Memory over {chosen.requests} different images: start {after[0] / 2**20:.0f} MiB, end "
        f"{after[-1] / 2**20:.0f} MiB, highest {max(after) / 2**20:.0f} MiB: {growth:.3f} of the start, "
        f"{'flat' if growth <= GROWTH_BAR else 'NOT flat'} (bar {GROWTH_BAR})"
    )
    if chosen.json:
        results: dict[str, Any] = {"machine": describe(), "batch": chosen.batch, "warm_up": chosen.warm_up}
        chosen.json.write_text(json.dumps(results | {"bytes": found, "growth": growth}, indent=1) + "\n")
    sys.exit(0 if growth <= GROWTH_BAR else 1)


if __name__ == "__main__":
    main()
