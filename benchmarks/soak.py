"""Twice what the server can take, for as long as one likes: good, bad and cut-off requests mixed, two tenants.

    python -m benchmarks.soak --minutes 20

A server with a demo checkpoint and the real engine makes 8 answers at once and lets 16 requests wait. 48 clients of one
key ask without a pause about images whose answers are known; one client of another key asks now and then. Others send
what must be refused, or leave in the midst of it. Then the run is judged:

- every good request was answered, and rightly: a 503 with Retry-After is no answer, so it is asked again as told;
- no status of 500 or more but that 503;
- of the other key's requests nine in ten were answered sooner than of the first one's, however many that has;
- memory, file descriptors, threads, tasks and metric series of the server, at rest, are as they were after warming up.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import describe
from tests.support.serve import started_server

MODEL = "llava-tiny-1.5"
SLOTS, ROOM = 8, 16
CLIENTS = 2 * (SLOTS + ROOM)
KEYS = {"many": "sk-many-0123456789abcdef", "few": "sk-few-0123456789abcdef"}
QUESTIONS = Path(__file__).parent.parent / "tests" / "clients"
START_SECONDS = 600.0
CACHE_BYTES = 16_000_000
"""Bytes of the KV cache. On a CPU it takes memory as it fills: 64 MB took a minute. This is full after warming up."""
REST_SECONDS = 8.0
"""Until what was cut off is given back, and a rest's figures are taken."""
ALLOWED_MEMORY = 0.05
"""Growth of the resident memory between two rests; an allocator's scatter is about half of it."""
ALLOWED_HANDLES = 3
"""File descriptors, threads and tasks: connections that a client's pool keeps open are among them."""


@dataclass(frozen=True, slots=True)
class Question:
    words: str
    answer: str
    image: str
    """A data URL."""

    def body(self, stream: bool) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": self.image}}
        content = [{"type": "text", "text": self.words}, image]
        messages = [{"role": "user", "content": content}]
        return {"model": MODEL, "messages": messages, "stream": stream, "temperature": 0, "max_tokens": 40}


def questions() -> list[Question]:
    found = json.loads((QUESTIONS / "questions.json").read_text())
    return [
        Question(each["question"], each["answer"], data_url(QUESTIONS / "pictures" / each["picture"])) for each in found
    ]


def data_url(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


@dataclass
class Tally:
    """What came of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    asked_again: int = 0
    wrong: list[str] = field(default_factory=list)
    """Good requests with another answer than theirs, and statuses that nobody intended."""
    many_seconds: list[float] = field(default_factory=list)
    few_seconds: list[float] = field(default_factory=list)
    """From asking to the whole answer."""


class Soak:
    def __init__(self, base_url: str, until: float, seed: int) -> None:
        self.base_url = base_url
        self.until = until
        self.seed = seed
        self.tally = Tally()
        self.questions = questions()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def client(self, key: str | None) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {KEYS[key]}"}
        return httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=180)

    async def run(self) -> None:
        tasks = [self.good(number, "many", 0.0) for number in range(CLIENTS)]
        tasks += [self.good(CLIENTS, "few", 1.0), *(self.bad(number) for number in range(2))]
        tasks += [self.cut(number) for number in range(3)]
        await asyncio.gather(*tasks)

    async def good(self, number: int, key: str, pause_seconds: float) -> None:
        """Questions with known answers; each is asked until it is answered."""
        chance = random.Random(f"{self.seed} {key} {number}")
        seconds = self.tally.few_seconds if key == "few" else self.tally.many_seconds
        async with self.client(key) as client:
            while not self.over:
                question, stream = chance.choice(self.questions), chance.random() < 0.5
                began = time.monotonic()
                answer = await self.until_answered(client, question.body(stream))
                seconds.append(time.monotonic() - began)
                if answer != question.answer:
                    self.tally.wrong.append(f"{question.words} was answered {answer!r}")
                self.tally.answered += 1
                await asyncio.sleep(pause_seconds)

    async def until_answered(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        while True:
            reply = await client.post("/v1/chat/completions", json=body)
            self.tally.statuses[str(reply.status_code)] += 1
            if reply.status_code == 200:
                return text_of(reply, body["stream"])
            if reply.status_code != 503 or "retry-after" not in reply.headers:
                return f"status {reply.status_code}: {reply.text[:200]}"
            self.tally.asked_again += 1
            # As told, but not for five whole seconds: the more there are at the door, the harder for the server.
            await asyncio.sleep(min(float(reply.headers["retry-after"]), 0.5))

    async def bad(self, number: int) -> None:
        chance = random.Random(f"{self.seed} bad {number}")
        kinds = bad_requests(self.questions[0])
        async with self.client("few") as client:
            first = True
            while not self.over:
                for name, expected, request in kinds if first else [chance.choice(kinds)]:
                    status = (await request(client)).status_code
                    self.tally.statuses[f"{name}: {status}"] += 1
                    if status not in (expected, 503):
                        self.tally.wrong.append(f"{name} had status {status}")
                first = False
                await asyncio.sleep(0.05)

    async def cut(self, number: int) -> None:
        """Leave in the midst: of the body, of the wait, of the answer; or stop reading."""
        chance = random.Random(f"{self.seed} cut {number}")
        host, port = self.base_url.removeprefix("http://").split(":")
        body = self.questions[0].body(stream=True) | {"max_tokens": 1500, "ignore_eos": True}
        whole = raw_request(json.dumps(body).encode(), KEYS["many"])
        while not self.over:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                stage = chance.choice(["nothing", "header", "body", "wait", "answer", "still"])
                sent = {"nothing": 0, "header": 60, "body": len(whole) // 2}.get(stage, len(whole))
                writer.write(whole[:sent])
                await writer.drain()
                if stage == "answer":
                    await reader.read(2000)
                await asyncio.sleep({"still": 2.0, "nothing": 0.5}.get(stage, chance.random() / 2))
                self.tally.statuses[f"cut in {stage}"] += 1
            finally:
                if chance.random() < 0.5:
                    writer.transport.abort()
                writer.close()


def raw_request(body: bytes, key: str) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def text_of(reply: httpx.Response, stream: bool) -> str:
    if not stream:
        return str(reply.json()["choices"][0]["message"]["content"])
    data = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        return f"a stream that ended with {data[-1:]}"
    chunks = [json.loads(line) for line in data[:-1]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


Send = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


def bad_requests(question: Question) -> list[tuple[str, int, Send]]:
    """(name, expected status, how it is sent)"""
    good = question.body(stream=False)
    path = "/v1/chat/completions"

    def with_image(url: str) -> dict[str, Any]:
        return Question(question.words, "", url).body(stream=True)

    def post(body: dict[str, Any], **others: Any) -> Send:
        return lambda client: client.post(path, json=body, **others)

    return [
        ("broken JSON", 400, lambda client: client.post(path, content=b'{"model": "x", ')),
        ("no model", 400, post({"messages": good["messages"]})),
        ("unknown model", 404, post({**good, "model": "gpt-9"})),
        ("an image in an unknown field", 400, post({**good, "image": question.image})),
        ("too long a prompt", 400, post({**good, "messages": [{"role": "user", "content": "a b c " * 9_000}]})),
        ("no image", 400, post(with_image("data:image/png;base64,AAAA"))),
        ("half an image", 400, post(with_image(question.image[: len(question.image) // 2]))),
        ("a private address", 400, post(with_image("http://127.0.0.1:1/x.png"))),
        ("wrong key", 401, post(good, headers={"authorization": "Bearer sk-nobody-0123456789"})),
        ("no such address", 404, lambda client: client.get("/v1/nothing")),
        ("wrong method", 405, lambda client: client.put(path, json=good)),
        ("a large body", 413, lambda client: client.post(path, content=b" " * 3_000_000)),
    ]


@dataclass(frozen=True, slots=True)
class Rest:
    """The server with nothing to do."""

    server_megabytes: float
    engine_megabytes: float
    file_descriptors: int
    threads: int
    tasks: int
    series: int
    unfinished: int
    """Answers in the making, requests that wait, requests in the engine."""


async def rest(process: psutil.Process, base_url: str) -> Rest:
    await asyncio.sleep(REST_SECONDS)
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
        lines = [line for line in (await client.get("/metrics")).text.split("\n") if line and line[0] != "#"]
    values = {line.rpartition(" ")[0].partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    ours = ("llava_api_slots_in_use", "llava_api_queue_depth", "vllm:num_requests_running", "vllm:num_requests_waiting")
    children = [child for child in process.children(recursive=True) if "VLLM" in " ".join(child.cmdline())]
    return Rest(
        server_megabytes=process.memory_info().rss / 1e6,
        engine_megabytes=sum(child.memory_info().rss for child in children) / 1e6,
        file_descriptors=process.num_fds(),
        threads=process.num_threads(),
        tasks=int(values["llava_api_asyncio_tasks"]),
        series=len(lines),
        unfinished=int(sum(values[name] for name in ours)),
    )


def faults(first: Rest, last: Rest, tally: Tally) -> list[str]:
    """What is not as it must be."""
    found = [*tally.wrong[:10]]
    found += [f"{name}: {count} times" for name, count in tally.statuses.items() if is_fault(name)]
    for name in ("server_megabytes", "engine_megabytes"):
        before, after = getattr(first, name), getattr(last, name)
        if after > before * (1 + ALLOWED_MEMORY):
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    for name in ("file_descriptors", "threads", "tasks"):
        if getattr(last, name) > getattr(first, name) + ALLOWED_HANDLES:
            found.append(f"{name} grew from {getattr(first, name)} to {getattr(last, name)}")
    if last.series > first.series * (1 + ALLOWED_MEMORY):
        found.append(f"metric series grew from {first.series} to {last.series}")
    if last.unfinished:
        found.append(f"{last.unfinished} requests are unfinished at rest")
    few, many = percentiles(tally.few_seconds)[1], percentiles(tally.many_seconds)[1]
    if few > many:
        found.append(f"nine in ten of the other key's requests took up to {few} s, of the many {many} s")
    return found


def is_fault(name: str) -> bool:
    """Whether what ends in a status is the server's fault; 503 is what it says when it is full."""
    status = name[-3:]
    return status.isdigit() and int(status) >= 500 and status != "503"


@contextmanager
def serving() -> Iterator[tuple[psutil.Process, str, list[str]]]:
    """The server's process, its base URL, and where what is wrong with its end is put."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        log, keys = Path(scratch) / "terminal.txt", Path(scratch) / "keys"
        keys.write_text("".join(f"{name}={secret}\n" for name, secret in KEYS.items()))
        flags = ["--api-key-file", str(keys), "--max-num-seqs", str(SLOTS), "--max-waiting-requests", str(ROOM)]
        flags += ["--metrics", "open", "--max-body-bytes", "2000000"]
        flags += ["--engine-arg", f"kv_cache_memory_bytes={CACHE_BYTES}"]
        with started_server(MODEL, log, *flags) as server:
            server.wait_for("\ncurl ", START_SECONDS)
            yield psutil.Process(server.process.pid), server.base_url.removesuffix("/v1"), found
            server.process.terminate()
            exit_code = server.process.wait(60)
        if exit_code:
            found.append(f"the server ended with exit code {exit_code}")
        if "Traceback" in (text := log.read_text(errors="replace")):
            found.append(f"the server wrote a traceback:\n{text[-3000:]}")


async def work(process: psutil.Process, base_url: str, minutes: float, seed: int) -> dict[str, Any]:
    warm_up = Soak(base_url, time.monotonic() + 60 * minutes / 4, seed)
    await warm_up.run()
    first = await rest(process, base_url)
    measured = Soak(base_url, time.monotonic() + 60 * minutes * 3 / 4, seed + 1)
    await measured.run()
    last = await rest(process, base_url)
    tally = measured.tally
    return {
        "machine": describe(),
        "minutes": minutes,
        "after warming up": asdict(first),
        "at the end": asdict(last),
        "answered": tally.answered,
        "asked again after a 503": tally.asked_again,
        "seconds of the many, p50, p90, p99": percentiles(tally.many_seconds),
        "seconds of the other key, p50, p90, p99": percentiles(tally.few_seconds),
        "requests": dict(sorted(tally.statuses.items())),
        "faults": faults(first, last, tally) + warm_up.tally.wrong[:10],
    }


def soak(minutes: float, seed: int = 0) -> dict[str, Any]:
    """What was found; ``faults`` is empty where all is well."""
    with serving() as (process, base_url, wrong):
        found = asyncio.run(work(process, base_url, minutes, seed))
    found["faults"] += wrong
    return found


def percentiles(seconds: list[float]) -> list[float]:
    ordered = sorted(seconds)
    return [round(ordered[int(len(ordered) * share)], 2) for share in (0.5, 0.9, 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found there too")
    chosen = parser.parse_args()
    found = soak(chosen.minutes, chosen.seed)
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")
    if found["faults"]:
        sys.exit("FAILED: " + "; ".join(found["faults"]))
    print("passed")


if __name__ == "__main__":
    main()
