"""The first quarter of an hour with an NVIDIA GPU, in at most eight minutes: ``python -m benchmarks.gpu``.

It starts LLaVA-1.5-7B and 13B in their true shapes with random weights (``load_format=dummy``: nothing is downloaded),
by this server and by vLLM's own, then the 7B in 4 and 8 bit. For each it measures the start, the time to the first
token, tokens/s at 1, 8 and 64 streams and images/s. It also compares pixels and token ids with LLaVA's own code, asks
for what a GPU's model runner computes in its own way, and kills a server to see what is left. What does not fit into
the time is skipped and named. Each result is written as soon as it is there (``--json``).

``--rehearse`` does the same on a CPU with a tiny model.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Failed, checked
from benchmarks.gpu_answers import Answers
from benchmarks.images import Images
from benchmarks.load import Answer, read_answer, send
from benchmarks.machine import describe
from benchmarks.servers import PEER_ENVIRONMENT, Contestant, Server, serving
from benchmarks.shapes import SEVEN, THIRTEEN, TINY, Shape, make_folder
from benchmarks.workloads import MODEL, image_body, text_body
from llava_api.checkpoints.size import Precision
from llava_api.cli import machine
from llava_api.cli.doctor.software_checks import compiler

Json = dict[str, Any]
NO_GPU = "No GPU here, so nothing was measured: nvidia-smi lists none. --rehearse tries everything on a CPU."
SECONDS = 480.0
FOR_STOPPING = 15.0
"""The last server gets them to end in."""
IMAGES_A_REQUEST = 16
IMAGE_SIZES = ((336, 336), (1024, 768))
ENDLESS = {"ignore_eos": True}
LOG_LINES = re.compile(
    r"Model loading took|KV cache size|Maximum concurrency|attention backend|Graph capturing|torch.compile takes"
    r"|max_num_batched_tokens"
)
"""What vLLM says of its choices while it starts."""
LOGGING = {"VLLM_LOGGING_LEVEL": "INFO"}


def ours(dtype: str) -> Contestant:
    def command(folder: Path, port: int) -> list[str]:
        words = [sys.executable, "-m", "llava_api", "serve", str(folder), "--port", str(port), "--log-level", "warning"]
        words += ["--served-model-name", MODEL, "--dtype", dtype, "--seed", "0"]
        return [*words, "--max-images-per-request", str(IMAGES_A_REQUEST), "--engine-arg", "load_format=dummy"]

    return Contestant("llava-api", command, LOGGING)


def peer(dtype: str) -> Contestant:
    def command(folder: Path, port: int) -> list[str]:
        words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        words += ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", dtype]
        words += ["--seed", "0", "--load-format", "dummy", "--uvicorn-log-level", "warning"]
        words += ["--limit-mm-per-prompt", json.dumps({"image": IMAGES_A_REQUEST})]
        return [*words, "--disable-log-stats", "--disable-uvicorn-access-log"]

    return Contestant("vllm serve", command, LOGGING | PEER_ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked."""

    streams: Sequence[int]
    tokens: int
    """Of an answer of text."""
    images: int
    probes: int
    """Requests one after the other, for the time to the first token."""


ON_GPU = Load(streams=(1, 8, 64), tokens=128, images=256, probes=10)
REHEARSAL = Load(streams=(1, 2), tokens=4, images=4, probes=2)


@dataclass(frozen=True, slots=True)
class Run:
    shape_name: str
    shape: Shape
    contestant: Contestant
    precision: Precision | None = None

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.shape_name, self.precision, self.contestant.name)))


def runs(rehearsal: bool) -> list[Run]:
    """The most important first."""
    dtype = "bfloat16" if rehearsal else "float16"
    first, second = (("tiny", TINY), ("tiny again", TINY)) if rehearsal else (("7B", SEVEN), ("13B", THIRTEEN))
    beside = [Run(*shape, contestant) for shape in (first, second) for contestant in (ours(dtype), peer(dtype))]
    return [*beside, Run(*first, ours(dtype), "4bit"), Run(*first, ours(dtype), "8bit")]


class Report:
    """All results so far, in a file that is whole at any time."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.began = time.monotonic()
        self.found: Json = {"runs": {}}

    def keep(self, *names: str, value: Any) -> None:
        place = self.found
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
        print(f"{time.monotonic() - self.began:6.1f} s  {', '.join(names)}: {value}", flush=True)
        if self.path is not None:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
            part.replace(self.path)


class Bodies:
    """Requests as bytes, made before any clock starts; both servers get the same."""

    def __init__(self, load: Load, seed: int = 1) -> None:
        numbers = iter(range(10**6))
        self.probes = [text_body(next(numbers), seed, 2, **ENDLESS) for _ in range(load.probes)]
        self.texts = {
            (streams, what): [text_body(next(numbers), seed, load.tokens, **ENDLESS) for _ in range(streams * rounds)]
            for streams in load.streams
            for what, rounds in (("warm-up", 1), ("measured", 2))
        }
        warm_up = max(load.streams)
        self.images = {
            size: [image_body(jpeg, 2, **ENDLESS) for jpeg in Images(size, seed).jpegs(range(warm_up + load.images))]
            for size in IMAGE_SIZES
        }
        jpegs = Images(IMAGE_SIZES[0], seed + 1).jpegs(range(load.probes))
        self.image_probes = [image_body(jpeg, 2, **ENDLESS) for jpeg in jpegs]


def ask(server: Server, bodies: Sequence[bytes], streams: int, what: str, end: float) -> tuple[list[Answer], float]:
    """(answers, seconds that they took together). Raises Failed."""
    exchanges = send(server.port, bodies, streams, end)
    if len(exchanges) < len(bodies):
        raise Failed(f"{what}: the time is up after {len(exchanges)} of {len(bodies)} requests")
    answers = checked([read_answer(exchange, None) for exchange in exchanges], what)
    return answers, max(exchange.ended for exchange in exchanges) - min(exchange.sent for exchange in exchanges)


def measure(server: Server, bodies: Bodies, keep: Callable[[str, Any], None], end: float) -> None:
    """Raises Failed."""
    for what, probes in (("text", bodies.probes), ("image", bodies.image_probes)):
        answers, _ = ask(server, probes, 1, f"first token, {what}", end)
        # The first ones meet kernels that are not compiled yet.
        warm = answers[len(answers) // 4 :]
        keep(f"first token ms, {what}", round(statistics.median(answer.first_token for answer in warm) * 1000, 1))
    for (streams, what), texts in bodies.texts.items():
        answers, seconds = ask(server, texts, streams, f"{streams} streams, {what}", end)
        if what == "measured":
            tokens = sum(answer.completion_tokens for answer in answers)
            keep(f"tokens/s, {streams} streams", round(tokens / seconds, 1))
    streams = max(streams for streams, _ in bodies.texts)
    for (width, height), images in bodies.images.items():
        ask(server, images[:streams], streams, f"{width}x{height}, warm-up", end)
        _, seconds = ask(server, images[streams:], streams, f"{width}x{height}", end)
        keep(f"images/s, {width}x{height}", round((len(images) - streams) / seconds, 1))


def gpu_facts() -> Json:
    try:
        card = machine.nvidia_smi()[0]
    except (OSError, IndexError) as error:
        return {"none": str(error)}
    return {"name": card.name, "driver": card.driver, "GiB": round(card.total / 2**30, 1)}


def used_gib() -> float | None:
    with suppress(OSError):
        return round(sum(card.total - card.free for card in machine.nvidia_smi()) / 2**30, 1)
    return None


def killed(server: Server) -> Json:
    """What is left ten seconds after a kill -9 of the server: nothing should be."""
    children = psutil.Process(server.process).children(recursive=True)
    before = used_gib()
    os.kill(server.process, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, 10)
    return {
        "processes": len(children),
        "left": [" ".join(process.cmdline())[:80] for process in alive if process.is_running()],
        "GPU memory in use, GiB": [before, used_gib()],
    }


def do(run: Run, folder: Path, logs: Path, bodies: Bodies, report: Report, end: float, last: bool) -> None:
    def keep(name: str, value: Any) -> None:
        report.keep("runs", run.name, name, value=value)

    try:
        with serving(run.contestant, folder, logs, end - time.monotonic()) as server:
            keep("start s", round(server.start_seconds, 1))
            lines = server.log.read_text(errors="replace").splitlines()
            keep("vLLM says", [line[-160:] for line in lines if LOG_LINES.search(line)][:16])
            keep("GPU memory in use, GiB", used_gib())
            if run.contestant.name != "vllm serve":
                keep("answers", Answers(server.port, end).check())
            measure(server, bodies, keep, end)
            if last:
                keep("after kill -9", killed(server))
    except (Failed, RuntimeError, OSError) as error:
        keep("failed", " ".join([str(error), *getattr(error, "__notes__", [])])[-1500:])


def table(found: Json) -> str:
    """In Markdown: a row for each run."""
    names = list(
        dict.fromkeys(name for one in found["runs"].values() for name, value in one.items() if is_figure(value))
    )
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[run, *(str(one.get(name, "")) for name in names)] for run, one in found["runs"].items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def is_figure(value: object) -> bool:
    return isinstance(value, int | float)


def everything(chosen: argparse.Namespace, report: Report) -> None:
    end = report.began + chosen.seconds - FOR_STOPPING
    report.keep("machine", value=describe())
    report.keep("GPU", value=gpu_facts())
    report.keep("compiler", value=[finding.found for finding in compiler(on_gpu=True)])
    longest = 0.0
    with ExitStack() as stack:
        logs = chosen.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs.mkdir(parents=True, exist_ok=True)
        folders = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pixels = make_folder(folders / "pixels", TINY)
        command = [sys.executable, "-m", "benchmarks.gpu_fidelity", str(pixels)]
        fidelity = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        stack.callback(fidelity.kill)
        bodies = Bodies(REHEARSAL if chosen.rehearse else ON_GPU)
        for number, run in enumerate(run for run in runs(chosen.rehearse) if chosen.only in run.name):
            left = end - time.monotonic()
            if left < longest:
                report.keep("runs", run.name, "skipped", value=f"{left:.0f} s are left, a run takes {longest:.0f}")
                continue
            began = time.monotonic()
            folder = make_folder(folders / str(number), run.shape, run.precision)
            do(run, folder, logs, bodies, report, end, last=number == 0)
            longest = max(longest, time.monotonic() - began)
            if number == 0:
                report.keep("fidelity", value=fidelity_of(fidelity, end))


def fidelity_of(process: "subprocess.Popen[bytes]", end: float) -> Any:
    try:
        output = process.communicate(timeout=max(1, end - time.monotonic()))[0].decode(errors="replace")
        return json.loads(output.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return f"no result: {error}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--rehearse", action="store_true", help="a tiny model on a CPU")
    made.add_argument("--seconds", type=float, default=SECONDS, help="the whole time that it may take")
    made.add_argument("--only", default="", help="only the runs with this in their name, such as 4bit")
    made.add_argument("--json", type=Path, help="write the results to this file, each as soon as it is there")
    made.add_argument("--logs", type=Path, help="keep the servers' logs in this folder")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    report = Report(chosen.json)
    if not chosen.rehearse and "none" in gpu_facts():
        print(NO_GPU)
        return
    everything(chosen, report)
    print(table(report.found))
    report.keep("seconds", value=round(time.monotonic() - report.began))


if __name__ == "__main__":
    main()
