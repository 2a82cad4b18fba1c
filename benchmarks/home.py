"""LLaVA-1.5-7B's true shape on a machine without a GPU, beside llama.cpp: ``python -m benchmarks.home --folder DIR``.

It makes the checkpoint, its 8 and 4 bit copies and llama.cpp's (``home_files.py``), serves each of the five in turn and
measures the start, memory, first tokens, tokens/s and a follow-up question. Weights are random: nothing is about
quality. A run is continued if it is started again: ``--turns 1`` measures one server and ends.

``--tiny`` tries everything on our side with a tiny model.
"""

import argparse
import base64
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import home_files
from benchmarks.home_report import markdown
from benchmarks.images import Images
from benchmarks.machine import describe
from benchmarks.process_tree import memory_bytes
from benchmarks.servers import Contestant, serving, until_ready
from benchmarks.shapes import SEVEN, TINY
from benchmarks.workloads import MODEL, QUESTION
from llava_api.cli import machine

Json = dict[str, Any]
FREE_BESIDE_WEIGHTS = 4_000_000_000
"""Bytes that a server needs besides its weights, at least."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""LLaVA's own; llama.cpp gets it with the template below, so that both prompts are the same."""
TEMPLATE = (
    "{%- for m in messages -%}{%- if m['role'] == 'system' -%}{{ m['content'] + ' ' }}"
    "{%- elif m['role'] == 'user' -%}{{ 'USER: ' + m['content'] + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + m['content'] + '</s>' }}{%- endif -%}{%- endfor -%}{{- 'ASSISTANT:' -}}"
)
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system"),
    *("program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother"),
)
"""One token each."""
TEXT_WORDS = 31
"""With BOS, 32 tokens."""
ANSWER = 33
"""Tokens; the first comes with the prompt."""
STREAMS = 4
FIDELITY_TEXTS, FIDELITY_CHARACTERS = 3, 600


@dataclass(frozen=True, slots=True)
class Entry:
    contestant: Contestant
    weights: Path
    """A file or folder."""

    @property
    def ours(self) -> bool:
        return self.weights.is_dir()

    def files(self) -> list[Path]:
        return sorted(self.weights.glob("*.safetensors")) if self.ours else [self.weights]


def ours(name: str) -> Contestant:
    """As a user types it, but for port and name."""

    def command(folder: Path, port: int) -> list[str]:
        words = [sys.executable, "-m", "llava_api", "serve", str(folder)]
        return [*words, "--port", str(port), "--served-model-name", MODEL]

    return Contestant(name, command, {})


def llama_cpp(home: Path, kind: str) -> Contestant:
    def command(file: Path, port: int) -> list[str]:
        words = [
            home / "build" / "bin" / "llama-server",
            "-m",
            file,
            "--mmproj",
            file.with_name(home_files.VISION_HALF),
        ]
        words += ["--port", str(port), "--chat-template-file", home / "template.jinja", "-a", MODEL]
        return [*map(str, words), "-c", "8192", "-np", str(STREAMS), "-t", str(machine.cores())]

    return Contestant(f"llama.cpp {kind}", command, {})


def entries(home: Path, only: str | None) -> list[Entry]:
    made = [Entry(ours("ours 16bit"), home / home_files.CHECKPOINT)]
    made += [Entry(ours(f"ours {precision}"), home / precision) for precision in home_files.PRECISIONS]
    theirs = [Entry(llama_cpp(home, kind), home / "gguf" / f"{kind}.gguf") for kind in home_files.GGUF_TYPES]
    if only is not None:
        return made if only == "ours" else theirs
    return [made[0], made[1], theirs[0], made[2], theirs[1]]


class Asker:
    """Sends requests that have no prefix in common but the system prompt. Times are in seconds."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.images = Images((336, 336), seed)
        self.number = 0
        self.prompt_tokens: dict[str, int] = {}

    def post(self, path: str, body: Json) -> Json:
        content = json.dumps({"model": MODEL, "temperature": 0, **body}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=900) as reply:
            found: Json = json.load(reply)
        return found

    def timed(self, what: str, path: str, body: Json, tokens: int) -> float:
        began = time.perf_counter()
        usage = self.post(path, {**body, "max_tokens": tokens, "ignore_eos": True})["usage"]
        seconds = time.perf_counter() - began
        if usage["completion_tokens"] != tokens:
            raise RuntimeError(f"{what}: {usage['completion_tokens']} tokens instead of {tokens}")
        self.prompt_tokens[what] = usage["prompt_tokens"]
        return seconds

    def text(self, tokens: int) -> float:
        words = " ".join(self.random.choice(WORDS) for _ in range(TEXT_WORDS))
        return self.timed("text", "/v1/completions", {"prompt": words}, tokens)

    def texts_at_once(self, tokens: int) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as threads:
            list(threads.map(self.text, [tokens] * STREAMS))
        return time.perf_counter() - began

    def conversation(self, *follow_up: str) -> list[Json]:
        """A question about the next image, and texts of assistant and user in turn."""
        url = "data:image/jpeg;base64," + base64.b64encode(self.images.jpeg(self.number)).decode()
        asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        more = [{"role": ("assistant", "user")[index % 2], "content": text} for index, text in enumerate(follow_up)]
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}, *more]

    def image(self, tokens: int) -> float:
        self.number += 1
        return self.timed("image", "/v1/chat/completions", {"messages": self.conversation()}, tokens)

    def follow_up(self, tokens: int) -> float:
        """Another question about the image before."""
        messages = self.conversation("A window in a house.", "How many are there in all of it?")
        return self.timed("follow-up", "/v1/chat/completions", {"messages": messages}, tokens)


def measure(port: int, process: int, repeats: int, seed: int) -> Json:
    asker = Asker(port, seed)
    found: Json = {"memory_ready_gb": memory_bytes(process) / 1e9}
    asker.text(2)
    asker.image(2)

    def median(function: Callable[[int], float], tokens: int, times: int = repeats) -> float:
        return statistics.median(function(tokens) for _ in range(times))

    found["text_seconds"] = first = median(asker.text, 1, 2 * repeats)
    found["image_seconds"] = median(asker.image, 1)
    found["follow_up_seconds"] = asker.follow_up(1)
    found["tokens_per_second_1"] = (ANSWER - 1) / (median(asker.text, ANSWER) - first)
    four = median(asker.texts_at_once, 1)
    found["tokens_per_second_4"] = STREAMS * (ANSWER - 1) / (median(asker.texts_at_once, ANSWER) - four)
    return found | {"memory_end_gb": memory_bytes(process) / 1e9, "prompt_tokens": asker.prompt_tokens}


def scores(port: int, seed: int) -> list[list[float]]:
    """[likeliest token, log-probability of the token that is there] at each place of some texts.

    The last is an answer about an image.
    """
    asker = Asker(port, seed)
    licence = Path(__file__).parents[1].joinpath("LICENSE").read_text()
    texts = [licence[index * FIDELITY_CHARACTERS :][:FIDELITY_CHARACTERS] for index in range(FIDELITY_TEXTS + 1)]
    asked = {"max_tokens": 1, "prompt_logprobs": 1}
    found: list[list[float]] = []
    for text in texts[:-1]:
        reply = asker.post("/v1/completions", {"prompt": text, **asked})
        found += places(reply["choices"][0]["prompt_logprobs"])
    messages = asker.conversation(texts[-1])
    reply = asker.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True, **asked})
    return found + places(reply["prompt_logprobs"])


def places(entries: list[Json | None]) -> list[list[float]]:
    """Only those after the last that has no probabilities: the beginning of the prompt, or the image."""
    found: list[list[float]] = []
    for entry in entries:
        if entry is None:
            found = []
            continue
        # The token that is there comes first.
        likeliest = next(int(token) for token, one in entry.items() if one["rank"] == 1)
        found.append([likeliest, next(iter(entry.values()))["logprob"]])
    return found


def limits(count: int, size: int) -> Json:
    """What the cores can do together: bytes read a second, and operations a second with 8 and 16 bit numbers.

    Of ``count`` numbers that are read, and of square matrices of ``size``.
    """
    import torch

    torch.set_num_threads(machine.cores())

    def best(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    numbers = torch.ones(count)
    read = numbers.nbytes / best(numbers.sum)
    del numbers
    small = torch.ones((size, size), dtype=torch.int8)
    half = torch.ones((size, size), dtype=torch.bfloat16)
    return {
        "bytes_per_second": read,
        "int8_per_second": 2 * size**3 / best(lambda: torch._int_mm(small, small)),
        "bfloat16_per_second": 2 * size**3 / best(lambda: half @ half),
    }


def measured_limits(tiny: bool) -> Json:
    """In a process of its own, so that its memory is free again."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(limits, *((2**20, 64) if tiny else (2**29, 4096))).result()


def turn(entry: Entry, home: Path, chosen: argparse.Namespace, number: int) -> Json:
    """Raises RuntimeError if the server does not start or answer."""
    size = home_files.into_page_cache(
        [*entry.files(), *([] if entry.ours else [entry.weights.with_name(home_files.VISION_HALF)])]
    )
    memory = machine.memory()
    free = 0 if memory is None else memory.available
    say(f"{entry.contestant.name}: {size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB of memory are free")
    if free < size + FREE_BESIDE_WEIGHTS:
        raise RuntimeError(
            f"{entry.contestant.name} needs {(size + FREE_BESIDE_WEIGHTS) / 1e9:.1f} GB and {free / 1e9:.1f} are free: "
            "close other programs, or measure the smaller ones with --without"
        )
    with serving(entry.contestant, entry.weights, home / "logs", ready=until_ready, environment=ENVIRONMENT) as server:
        found = {"round": number, "name": entry.contestant.name, "free_gb": free / 1e9}
        found |= {"load_average": os.getloadavg()[0], "ready_seconds": server.start_seconds}
        found |= measure(server.port, server.process, chosen.repeats, seed=number)
        if chosen.fidelity and entry.ours:
            found["scores"] = scores(server.port, seed=0)
    return found | {"streamed_bytes": home_files.streamed_bytes(entry.files())}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--folder", type=Path, help="keep everything here, and continue what is here")
    made.add_argument("--only", choices=("ours", "llama"), help="one side")
    made.add_argument("--without", action="append", default=[], help="leave out, such as 'ours 16bit'")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--repeats", type=int, default=2, help="of each request in a round")
    made.add_argument("--turns", type=int, help="measure this number of servers, then end")
    made.add_argument("--prepare", action="store_true", help="only make the files")
    made.add_argument("--fidelity", action="store_true", help="compare log-probabilities with those in 16 bit")
    made.add_argument("--tiny", action="store_true", help="try it with a tiny model, without llama.cpp")
    return made


def everything(home: Path, chosen: argparse.Namespace) -> None:
    results = home / "results.json"
    found: Json = json.loads(results.read_text()) if results.exists() else {"made": {}, "limits": [], "turns": []}

    def save() -> None:
        part = results.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(results)

    only = "ours" if chosen.tiny else chosen.only
    found["made"] |= home_files.make_ours(home, TINY if chosen.tiny else SEVEN, say)
    save()
    if only != "ours":
        (home / "template.jinja").write_text(TEMPLATE)
        home_files.make_llama_cpp(home, say)
    if chosen.prepare:
        return
    found |= {"machine": describe(), "llama.cpp": home_files.LLAMA_CPP_VERSION, "tiny": chosen.tiny}
    found["limits"].append(measured_limits(chosen.tiny))
    say(", ".join(f"{name} {value:.3g}" for name, value in found["limits"][-1].items()))
    (home / "logs").mkdir(exist_ok=True)
    wanted = [entry for entry in entries(home, only) if entry.contestant.name not in chosen.without]
    done = {(one["round"], one["name"]) for one in found["turns"]}
    turns = [
        (number, wanted[(place + number) % len(wanted)])
        for number in range(chosen.rounds)
        for place in range(len(wanted))
    ]
    left = [(number, entry) for number, entry in turns if (number, entry.contestant.name) not in done]
    for number, entry in left[: chosen.turns]:
        found["turns"].append(turn(entry, home, chosen, number))
        save()
        say(json.dumps({name: value for name, value in found["turns"][-1].items() if name != "scores"}))
    (home / "home.md").write_text(markdown(found))
    print(markdown(found))
    say(f"{len(left[chosen.turns :]) if chosen.turns else 0} turns are left; written: {home}/home.md, {results}")


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    try:
        if chosen.folder is not None:
            chosen.folder.mkdir(parents=True, exist_ok=True)
            everything(chosen.folder.resolve(), chosen)
            return
        with tempfile.TemporaryDirectory() as name:
            everything(Path(name), chosen)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit("\n".join(["FAILED: " + str(error), *getattr(error, "__notes__", [])]))


if __name__ == "__main__":
    main()
