"""What one run of a workload against one server gives: a few numbers."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import Answer, read_answer, send
from benchmarks.process_tree import MemoryWatch, cpu_seconds, machine_cpu_seconds
from benchmarks.servers import Server
from benchmarks.workloads import ANSWER_TOKENS, Material, Workload


class Failed(Exception):
    """A request was not answered as it should be: no number of such a run is worth anything."""


@dataclass(frozen=True, slots=True)
class Figures:
    requests: int
    seconds: float
    requests_per_second: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    token_p50_ms: float
    """Median over the answers of the mean time from one token to the next."""
    gap_p50_ms: float
    gap_p99_ms: float
    cpu_seconds_per_request: float
    """User and system time of the server's whole process tree."""
    load_cpu_seconds_per_request: float
    """Of the load generator, which shares the machine."""
    other_cores: float
    """Cores that everything else on the machine kept busy meanwhile: above some hundredths the run is disturbed."""
    peak_memory_mib: float
    """Highest sum of proportional set sizes over the server's process tree."""
    prompt_tokens_min: int
    prompt_tokens_max: int
    pieces_per_answer: float
    """Pieces of text that an answer came in."""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def checked(answers: list[Answer], what: str) -> list[Answer]:
    """Raises Failed where one is not as it should be."""
    problems = [answer.problem for answer in answers if answer.problem is not None]
    if problems:
        raise Failed(f"{what}: {len(problems)} of {len(answers)} requests failed; the first: {problems[0]}")
    return answers


def used_so_far(server: Server) -> tuple[float, float, float]:
    """CPU seconds of this process, of the server, and of the whole machine."""
    return sum(os.times()[:2]), cpu_seconds(server.process), machine_cpu_seconds()


def wait_for_quiet(server: Server, limit_seconds: float) -> None:
    """Wait until nothing else on the machine uses more than a fifth of a core, but no longer than the limit."""
    began = time.monotonic()
    while time.monotonic() - began < limit_seconds:
        before = used_so_far(server)
        time.sleep(1)
        own, theirs, whole = (after - used for used, after in zip(before, used_so_far(server), strict=True))
        if whole - own - theirs < 0.2:
            return


def run_workload(server: Server, workload: Workload, material: Material, what: str) -> Figures:
    """Warm up, then measure. Raises Failed."""
    warm_up = send(server.port, material.warm_up, workload.concurrency)
    checked([read_answer(exchange, ANSWER_TOKENS) for exchange in warm_up], f"{what}, warm-up")
    with MemoryWatch(server.process) as memory:
        before = used_so_far(server)
        exchanges = send(server.port, material.measured, workload.concurrency)
        own, theirs, whole = (after - used for used, after in zip(before, used_so_far(server), strict=True))
    answers = checked([read_answer(exchange, ANSWER_TOKENS) for exchange in exchanges], what)
    seconds = max(exchange.ended for exchange in exchanges) - min(exchange.sent for exchange in exchanges)
    first = [answer.first_token * 1000 for answer in answers]
    gaps = [gap * 1000 for answer in answers for gap in answer.gaps]
    return Figures(
        requests=len(answers),
        seconds=seconds,
        requests_per_second=len(answers) / seconds,
        ttft_p50_ms=statistics.median(first),
        ttft_p99_ms=percentile(first, 0.99),
        token_p50_ms=statistics.median(sum(answer.gaps) * 1000 / (ANSWER_TOKENS - 1) for answer in answers),
        gap_p50_ms=statistics.median(gaps),
        gap_p99_ms=percentile(gaps, 0.99),
        cpu_seconds_per_request=theirs / len(answers),
        load_cpu_seconds_per_request=own / len(answers),
        other_cores=max(0.0, whole - own - theirs) / seconds,
        peak_memory_mib=memory.peak_bytes / 2**20,
        prompt_tokens_min=min(answer.prompt_tokens for answer in answers),
        prompt_tokens_max=max(answer.prompt_tokens for answer in answers),
        pieces_per_answer=statistics.mean(len(answer.gaps) + 1 for answer in answers),
    )
