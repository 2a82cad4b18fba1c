"""Command-line flags that several benchmarks share."""

import argparse
from pathlib import Path

from benchmarks.workloads import BY_NAME, Workload
from llava_api.cli.flags import DEMO

QUICK_SHARE = 0.2


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Flags for what is measured; the first line of ``description`` is shown."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--model", default=DEMO, help="checkpoint folder, or name of a bundled demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of each workload's requests: 0.5 for half as many")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), help="this workload alone; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of images and texts")
    parser.add_argument("--json", type=Path, help="write every number of every round to this file")
    return parser


def chosen_workloads(chosen: argparse.Namespace) -> list[Workload]:
    workloads = [workload for name, workload in BY_NAME.items() if chosen.only is None or name in chosen.only]
    return [workload.shorter(QUICK_SHARE if chosen.quick else chosen.share) for workload in workloads]


def chosen_rounds(chosen: argparse.Namespace) -> range:
    """Numbered from 1."""
    return range(1, (1 if chosen.quick else chosen.rounds) + 1)
