"""The front end alone, on a scripted engine: its own ceiling. ``python -m benchmarks.front_end [--quick]``.

It is the product's own ``serve`` command, uvicorn, settings and all; only the function that loads the engine is
another.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Failed, Figures, run_workload
from benchmarks.machine import describe
from benchmarks.options import chosen_rounds, chosen_workloads, make_parser
from benchmarks.scripted_engine import ScriptedEngine
from benchmarks.servers import Contestant, our_command, serving
from benchmarks.workloads import Workload, make_material
from llava_api.cli import serve
from llava_api.cli.flags import find_model
from llava_api.cli.main import main as llava_api
from llava_api.engine.base import ModelToLoad
from llava_api.settings import Settings

AS_SERVER = "--as-server"


async def start_scripted(settings: Settings, model: ModelToLoad) -> ScriptedEngine:
    return ScriptedEngine()


def command(folder: Path, port: int) -> list[str]:
    """Our server's own command line, by way of this module."""
    interpreter, _, _, *arguments = our_command(folder, port)
    return [interpreter, "-m", "benchmarks.front_end", AS_SERVER, *arguments]


FRONT_END = Contestant("front-end", command, {})


def be_the_server(arguments: list[str]) -> None:
    if not hasattr(serve, "start_engine"):
        sys.exit("benchmarks/front_end.py: llava_api.cli.serve has no start_engine any more; mend this benchmark")
    serve.start_engine = start_scripted
    llava_api(arguments)


def line(workload: Workload, found: Figures) -> str:
    return (
        f"{workload.name:<9} {found.requests_per_second:8.1f} requests/s   first token p50 {found.ttft_p50_ms:7.1f} "
        f"p99 {found.ttft_p99_ms:7.1f} ms   CPU {found.cpu_seconds_per_request * 1000:6.2f} ms a request   "
        f"others {found.other_cores:.2f} cores"
    )


def main() -> None:
    chosen = make_parser(__doc__).parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    folder = Path(find_model(chosen.model))
    try:
        with tempfile.TemporaryDirectory() as scratch, serving(FRONT_END, folder, Path(scratch)) as server:
            for number in chosen_rounds(chosen):
                for workload in chosen_workloads(chosen):
                    material = make_material(workload, number - 1, chosen.seed)
                    found = run_workload(server, workload, material, f"front end, {workload.name}")
                    print(line(workload, found), flush=True)
                    runs.setdefault(workload.name, []).append(dataclasses.asdict(found))
    except Failed as error:
        sys.exit(f"FAILED: {error}")
    if chosen.json:
        rates = {name: [figures["requests_per_second"] for figures in found] for name, found in runs.items()}
        results = {"machine": describe(), "requests_per_second": rates, "rounds": runs}
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_SERVER]:
        be_the_server(sys.argv[2:])
    else:
        main()
