"""This server beside vLLM's own on the same checkpoint: ``python -m benchmarks.bench [--quick]``.

In every round both servers are started, measured on the same seeded requests and stopped, one after the other, so that
whatever else the machine does meets both alike. A failed request ends the run with exit code 1. A whole run takes
about 15 minutes on 2 cores; ``--quick`` about 3, and is good for nothing but to see that all of it works. On 2 cores
vLLM's engine itself runs in a fast and in a slow way (large and small batches), for seconds at a time and under any
server: ``--together --rounds 8 --share 0.5`` spends the same minutes on more and nearer pairs.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import endless_copy
from benchmarks.figures import Failed, Figures, run_workload, wait_for_quiet
from benchmarks.machine import describe
from benchmarks.options import chosen_rounds, chosen_workloads, make_parser
from benchmarks.report import markdown
from benchmarks.servers import ENVIRONMENT, OURS, PEER, Contestant, Server, serving
from benchmarks.workloads import ANSWER_TOKENS, Material, Workload, make_material
from llava_api.cli.flags import find_model

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__)
    made.add_argument("--parts", action="store_true", help="measure the engine alone and the front end alone as well")
    made.add_argument(
        "--together", action="store_true", help="keep both servers up, one of them idle: for a machine with much noise"
    )
    made.add_argument("--quiet", type=float, default=0, metavar="SECONDS", help="wait so long for an idle machine")
    made.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    return made


def line(workload: Workload, found: Figures) -> str:
    return (
        f"{workload.name:<9} {found.requests_per_second:7.2f} requests/s   first token {found.ttft_p50_ms:7.1f} / "
        f"{found.ttft_p99_ms:7.1f} ms   gap {found.gap_p50_ms:6.2f} / {found.gap_p99_ms:6.2f} ms   "
        f"CPU {found.cpu_seconds_per_request:.4f} s   {found.peak_memory_mib:6.0f} MiB   "
        f"others {found.other_cores:.2f} cores"
    )


class Bench:
    """The runs of one call, and the start-up times."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.chosen = chosen
        self.folder = folder
        self.workloads = chosen_workloads(chosen)
        self.runs: list[Json] = []
        self.starts: dict[str, list[float]] = {OURS.name: [], PEER.name: []}

    @contextmanager
    def started(self, contestant: Contestant) -> Iterator[Server]:
        say(f"{contestant.name}: starting")
        with serving(contestant, self.folder, self.folder.parent) as server:
            say(f"  first answer after {server.start_seconds:.1f} s")
            self.starts[contestant.name].append(server.start_seconds)
            yield server

    def measure(self, server: Server, name: str, number: int, workload: Workload, material: Material) -> None:
        """Raises Failed."""
        wait_for_quiet(server, self.chosen.quiet)
        found = run_workload(server, workload, material, f"{name}, {workload.name}")
        say(f"  round {number} {name} {line(workload, found)}")
        self.runs.append(
            {"round": number, "server": name, "workload": workload.name, "figures": dataclasses.asdict(found)}
        )

    def in_turn(self) -> Iterator[int]:
        """One server at a time: started, measured on everything, stopped. Yields the number of each round done."""
        for number in chosen_rounds(self.chosen):
            materials = {workload: make_material(workload, number - 1, self.chosen.seed) for workload in self.workloads}
            for contestant in order(number):
                with self.started(contestant) as server:
                    for workload, material in materials.items():
                        self.measure(server, contestant.name, number, workload, material)
            yield number

    def together(self) -> Iterator[int]:
        """Both up the whole time, one of them idle: a workload's two runs are seconds apart. Yields likewise."""
        with self.started(OURS) as ours, self.started(PEER) as peer:
            servers = {OURS: ours, PEER: peer}
            for number in chosen_rounds(self.chosen):
                for workload in self.workloads:
                    material = make_material(workload, number - 1, self.chosen.seed)
                    for contestant in order(number):
                        self.measure(servers[contestant], contestant.name, number, workload, material)
                yield number


def order(number: int) -> tuple[Contestant, Contestant]:
    """Which goes first alternates: what a machine does slowly must not always meet the same one."""
    return (OURS, PEER) if number % 2 else (PEER, OURS)


def measure_part(module: str, chosen: argparse.Namespace, scratch: Path) -> Json:
    """Requests/s of each workload, by another benchmark in a process of its own."""
    file = scratch / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--model", chosen.model, "--json", str(file)]
    command += ["--seed", str(chosen.seed), "--rounds", str(chosen.rounds), "--share", str(chosen.share)]
    command += [*(["--quick"] if chosen.quick else [])]
    command += [word for name in chosen.only or () for word in ("--only", name)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | ENVIRONMENT)
    found: Json = json.loads(file.read_text())["requests_per_second"]
    return found


def command_line(contestant: Contestant, folder: Path) -> str:
    """As in a shell, without this machine's paths."""
    words = ["python", *contestant.command(folder, 0)[1:]]
    text = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in contestant.environment.items()), shlex.join(words)])
    return re.sub(r"--port 0\b", "--port PORT", text.replace(str(folder), "CHECKPOINT"))


def write(results: Json, chosen: argparse.Namespace) -> str:
    """To the files that were asked for; returns the tables."""
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    if chosen.markdown:
        chosen.markdown.write_text(text)
    return text


def main() -> None:
    chosen = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = endless_copy(Path(find_model(chosen.model)), scratch / "checkpoint")
        bench = Bench(chosen, folder)
        results: Json = {
            "machine": describe(),
            "seed": chosen.seed,
            "answer_tokens": ANSWER_TOKENS,
            "together": chosen.together,
            "commands": {contestant.name: command_line(contestant, folder) for contestant in (OURS, PEER)},
            "environment": ENVIRONMENT,
            "runs": bench.runs,
            "start_seconds": bench.starts,
        }
        try:
            for _ in bench.together() if chosen.together else bench.in_turn():
                write(results, chosen)  # After every round: a run that is broken off has not been for nothing.
        except Failed as error:
            sys.exit(f"FAILED: {error}\n" + "\n".join(getattr(error, "__notes__", ())))
        if chosen.parts:
            results["ceiling"] = measure_part("ceiling", chosen, scratch)
            results["front_end"] = measure_part("front_end", chosen, scratch)
    print(write(results, chosen))


if __name__ == "__main__":
    main()
