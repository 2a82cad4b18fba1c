"""How long callbacks hold the server's event loop under 12-megapixel images: ``python -m benchmarks.event_loop``.

The product's own ``serve`` command with the real engine, on asyncio's own loop instead of uvloop's, because only there
a callback can be timed from outside. Wall time includes what the machine takes for the other processes; CPU time of the
loop's thread is what the callback itself costs.
"""

import asyncio
import atexit
import json
import os
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.checkpoint import endless_copy
from benchmarks.figures import Failed, percentile, run_workload
from benchmarks.options import chosen_rounds, chosen_workloads, make_parser
from benchmarks.servers import ENVIRONMENT, Contestant, our_command, serving
from benchmarks.workloads import make_material
from llava_api.cli.flags import find_model
from llava_api.cli.main import main as llava_api

AS_SERVER = "--as-server"
REPORT = "BENCHMARK_CALLBACKS"
"""Variable that names the file to write to."""
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1.0}


def command(folder: Path, port: int) -> list[str]:
    interpreter, _, _, *arguments = our_command(folder, port)
    return [interpreter, "-m", "benchmarks.event_loop", AS_SERVER, *arguments]


def be_the_server(arguments: list[str]) -> None:
    wall, processor = array("d"), array("d")
    run, make_config = asyncio.Handle._run, uvicorn.Config.__init__

    def timed(handle: asyncio.Handle) -> None:
        began, used = time.perf_counter(), time.thread_time()
        run(handle)
        wall.append(time.perf_counter() - began)
        processor.append(time.thread_time() - used)

    def plain_loop(config: uvicorn.Config, *positional: Any, **more: Any) -> None:
        make_config(config, *positional, **{**more, "loop": "asyncio"})

    def write() -> None:
        found = {"wall": list(wall), "processor": list(processor)}
        Path(os.environ[REPORT]).write_text(json.dumps(found))

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    uvicorn.Config.__init__ = plain_loop  # type: ignore[method-assign]
    atexit.register(write)
    llava_api(arguments)


def report(found: dict[str, list[float]]) -> None:
    print(f"{len(found['wall'])} callbacks, milliseconds")
    for kind, seconds in found.items():
        # Loading the engine is one callback of many seconds, before the port is open.
        served = sorted(one for one in seconds if one < 5)
        row = "   ".join(f"{name} {percentile(served, share) * 1000:8.3f}" for name, share in SHARES.items())
        print(f"{kind:<10} {row}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(only=["large"], rounds=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = endless_copy(Path(find_model(chosen.model)), Path(scratch) / "checkpoint")
        file = Path(scratch) / "callbacks.json"
        contestant = Contestant("event-loop", command, {**ENVIRONMENT, REPORT: str(file)})
        try:
            with serving(contestant, folder, Path(scratch)) as server:
                for number in chosen_rounds(chosen):
                    for workload in chosen_workloads(chosen):
                        run_workload(server, workload, make_material(workload, number, chosen.seed), "event loop")
        except Failed as error:
            sys.exit(f"FAILED: {error}")
        report(json.loads(file.read_text()))


if __name__ == "__main__":
    if AS_SERVER in sys.argv:
        be_the_server(sys.argv[sys.argv.index(AS_SERVER) + 1 :])
    else:
        main()
