"""Raw rounds -> Markdown tables of medians and ratios.

A ratio is ours / peer of one round, in which both got the same requests one after the other; given are the median of
the rounds' ratios and their range. ``python -m benchmarks.report FILE.json`` makes the tables again.
"""

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import BY_NAME, Workload

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    field: str
    title: str
    digits: int
    bar: str | None = None
    """The workload's field that holds its bar."""
    more_is_better: bool = False


METRICS = (
    Metric("requests_per_second", "Requests/s", 2, "rate_bar", True),
    Metric("ttft_p50_ms", "Time to first token, p50, ms", 1, "ttft_bar"),
    Metric("ttft_p99_ms", "Time to first token, p99, ms", 1),
    Metric("token_p50_ms", "Per token after the first, p50 of the answers' means, ms", 2),
    Metric("gap_p50_ms", "Between tokens, p50, ms", 2),
    Metric("gap_p99_ms", "Between tokens, p99, ms", 2),
    Metric("cpu_seconds_per_request", "CPU seconds per request, all processes of the server", 4),
    Metric("peak_memory_mib", "Peak memory, MiB (PSS of all processes of the server)", 0),
)


def spread(values: Sequence[float], digits: int) -> str:
    """``median (least..most)``"""
    if any(math.isnan(value) for value in values):
        return "not a number in every round"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def values_of(results: Json, server: str, workload: str, field: str) -> list[float]:
    """In the order of the rounds."""
    runs = [run for run in results["runs"] if run["server"] == server and run["workload"] == workload]
    return [run["figures"][field] for run in sorted(runs, key=lambda run: int(run["round"]))]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """NaN where the peer's is zero: most gaps are, where a client reads several tokens at once."""
    return [own / their if their else float("nan") for own, their in zip(ours, theirs, strict=True)]


def verdict(metric: Metric, workload: Workload, found: Sequence[float]) -> str:
    bar = float(getattr(workload, metric.bar or ""))
    median = statistics.median(found)
    met = median >= bar if metric.more_is_better else median <= bar
    return f"{'>=' if metric.more_is_better else '<='} {bar:g} | {'met' if met else '**missed**'}"


def workloads_in(results: Json) -> list[Workload]:
    names = {run["workload"] for run in results["runs"]}
    return [workload for workload in BY_NAME.values() if workload.name in names]


def metric_table(results: Json, metric: Metric) -> Iterator[str]:
    yield f"\n### {metric.title}\n"
    yield "| workload | ours | peer | ratio |" + (" bar | |" if metric.bar else "")
    yield "|---|---|---|---|" + ("---|---|" if metric.bar else "")
    for workload in workloads_in(results):
        ours = values_of(results, "ours", workload.name, metric.field)
        theirs = values_of(results, "peer", workload.name, metric.field)
        found = ratios(ours, theirs)
        row = f"| {workload.title}, c={workload.concurrency} | {spread(ours, metric.digits)} "
        row += f"| {spread(theirs, metric.digits)} | **{spread(found, 2)}** |"
        yield row + (f" {verdict(metric, workload, found)} |" if metric.bar else "")


def start_table(results: Json) -> Iterator[str]:
    times = results["start_seconds"]
    yield "\n### Start-up: from starting the process to its first answer, s\n"
    yield "| ours | peer | ratio |\n|---|---|---|"
    found = spread(ratios(times["ours"], times["peer"]), 2)
    yield f"| {spread(times['ours'], 1)} | {spread(times['peer'], 1)} | **{found}** |"


def alone_table(results: Json) -> Iterator[str]:
    """The engine without a server, and this server without an engine."""
    columns = {"ceiling": "the engine alone, offline", "front_end": "the front end alone, scripted engine"}
    there = {part: title for part, title in columns.items() if results.get(part)}
    if not there:
        return
    yield "\n### The parts alone, requests/s\n"
    yield "| workload | ours |" + "".join(f" {title} | ours / it |" for title in there.values())
    yield "|---|---|" + "---|---|" * len(there)
    for workload in workloads_in(results):
        ours = statistics.median(values_of(results, "ours", workload.name, "requests_per_second"))
        row = f"| {workload.title}, c={workload.concurrency} | {ours:.1f} |"
        for part in there:
            alone = results[part][workload.name]
            row += f" {spread(alone, 1)} | **{ours / statistics.median(alone):.2f}** |"
        yield row


def sanity_table(results: Json) -> Iterator[str]:
    yield "\n### Are both doing the same work?\n"
    yield (
        "| workload | requests a round | prompt tokens, ours | peer | pieces an answer, ours | peer "
        "| CPU s per request of the load generator, ours | peer | cores used by others, ours | peer |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for workload in workloads_in(results):
        row = f"| {workload.title} | {values_of(results, 'ours', workload.name, 'requests')[0]} |"
        for server in ("ours", "peer"):
            least = min(values_of(results, server, workload.name, "prompt_tokens_min"))
            most = max(values_of(results, server, workload.name, "prompt_tokens_max"))
            row += f" {least}..{most} |"
        for field, digits in (("pieces_per_answer", 1), ("load_cpu_seconds_per_request", 4), ("other_cores", 2)):
            for server in ("ours", "peer"):
                row += f" {statistics.median(values_of(results, server, workload.name, field)):.{digits}f} |"
        yield row


def conditions(results: Json) -> Iterator[str]:
    machine = results["machine"]
    yield (
        f"{machine['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; load average at the start {machine['load_average_at_start']:.1f}. "
        + ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
        + "."
    )
    rounds = len({run["round"] for run in results["runs"]})
    way = (
        "both servers are up all the time, and one is idle while the other is measured (memory that both map, such as "
        "libraries, is counted half for each)"
        if results["together"]
        else "in each both servers are started, measured and stopped, one after the other"
    )
    yield (
        f"\n{rounds} rounds; {way}; which is first alternates. Both get the same request bytes, streaming, "
        f"temperature 0, and every answer has {results['answer_tokens']} tokens. The load generator runs on the same "
        "cores as the server. Cells are the median of the rounds (least..most); ratios are ours / peer within a round."
    )
    yield f"\nOurs: `{results['commands']['ours']}`\n\nPeer: `{results['commands']['peer']}`"
    yield "\nIn the environment of both: " + ", ".join(f"`{k}={v}`" for k, v in results["environment"].items()) + "."


def markdown(results: Json) -> str:
    lines = ["## This server beside `vllm serve`\n", *conditions(results)]
    for metric in METRICS:
        lines += metric_table(results, metric)
    lines += [*start_table(results), *alone_table(results), *sanity_table(results)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
