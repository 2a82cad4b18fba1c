"""What a batch costs interactive requests, and how much of an idle engine it uses.

``python -m benchmarks.batches`` starts ``llava-api serve`` with the demo checkpoint and measures on it

- requests/s of a batch, beside the best closed loop over HTTP with the same requests;
- the time to the first token of interactive requests that come at random, with a batch running and without, in turns.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import orjson

from benchmarks.images import Images
from benchmarks.load import Connection, head_of, read_answer
from benchmarks.servers import ENVIRONMENT, first_answer, free_port
from benchmarks.workloads import MODEL, image_body
from llava_api.batch.room import QUIET_SECONDS

SIZE = (336, 336)
ANSWER_TOKENS = 32
CONCURRENCIES = (16, 24, 32)
POLL_SECONDS = 0.1
SERVER = "from llava_api.batch import room; room.QUIET_SECONDS = {}; from llava_api.cli.main import main; main()"
PAUSE_SECONDS = 3.0
"""Between two measurements, until the engine has nothing left to do."""


class Material:
    """Requests with images that have not been sent before."""

    def __init__(self) -> None:
        self.images = Images(SIZE)
        self.number = 0

    def bodies(self, count: int, *, stream: bool) -> list[bytes]:
        numbers = range(self.number, self.number + count)
        self.number += count
        more: dict[str, Any] = {"ignore_eos": True}
        if not stream:
            more |= {"stream": False, "stream_options": None}
        return [image_body(jpeg, ANSWER_TOKENS, **more) for jpeg in self.images.jpegs(numbers)]

    def lines(self, count: int) -> bytes:
        request = {"method": "POST", "url": "/v1/chat/completions"}
        return b"".join(
            orjson.dumps({"custom_id": str(number), **request, "body": orjson.loads(body)}) + b"\n"
            for number, body in enumerate(self.bodies(count, stream=False))
        )


class Api:
    def __init__(self, port: int) -> None:
        self.port = port
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", timeout=120)

    async def start_batch(self, lines: bytes) -> str:
        file = await self.http.post("/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", lines)})
        wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = await self.http.post("/batches", json={"input_file_id": file.json()["id"], **wanted})
        made.raise_for_status()
        batch: str = made.json()["id"]
        return batch

    async def get(self, batch: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/batches/{batch}")).json()
        return found

    async def completed(self, batch: str, least: int = 0) -> int:
        """Wait for ``least`` answers, and return how many there are."""
        while (counts := (await self.get(batch))["request_counts"])["completed"] < least:
            assert counts["failed"] == 0, counts
            await asyncio.sleep(POLL_SECONDS)
        count: int = counts["completed"]
        return count

    async def cancel(self, batch: str) -> None:
        await self.http.post(f"/batches/{batch}/cancel")
        while (await self.get(batch))["status"] != "cancelled":  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(POLL_SECONDS)


async def closed_loop(port: int, bodies: Sequence[bytes], concurrency: int) -> float:
    """Requests per second."""
    waiting = iter(bodies)

    async def client() -> None:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        for body in waiting:
            exchange = await connection.ask(head_of(body), body, 120)
            assert exchange.status == 200, exchange
        assert connection.transport is not None
        connection.transport.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return len(bodies) / (time.perf_counter() - started)


async def batch_rate(api: Api, lines: bytes, count: int) -> float:
    """Requests per second, from the first to the last."""
    batch = await api.start_batch(lines)
    first, started = await api.completed(batch, 1), time.perf_counter()
    done = await api.completed(batch, count)
    return (done - first) / (time.perf_counter() - started)


async def first_tokens(port: int, bodies: Sequence[bytes], rate: float, seed: int) -> list[float]:
    """Seconds to the first token of requests that come at random, ``rate`` in a second."""
    drawn = random.Random(seed)
    idle: list[Connection] = []

    async def ask(body: bytes) -> float:
        if idle:
            connection = idle.pop()
        else:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        answer = read_answer(await connection.ask(head_of(body), body, 120), ANSWER_TOKENS)
        assert answer.problem is None, answer.problem
        idle.append(connection)
        return answer.first_token

    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(ask(body)))
        await asyncio.sleep(drawn.expovariate(rate))
    found = await asyncio.gather(*tasks)
    for connection in idle:
        assert connection.transport is not None
        connection.transport.close()
    return found


async def measure_use(api: Api, material: Material, requests: int) -> dict[str, object]:
    await closed_loop(api.port, material.bodies(requests // 2, stream=False), max(CONCURRENCIES))
    loops = {
        concurrency: await closed_loop(api.port, material.bodies(requests, stream=False), concurrency)
        for concurrency in CONCURRENCIES
    }
    # Until the engine counts as idle.
    await asyncio.sleep(QUIET_SECONDS + 1)
    rate = await batch_rate(api, material.lines(requests), requests)
    best = max(loops.values())
    rounded = {str(concurrency): round(each, 1) for concurrency, each in loops.items()}
    return {"closed loop": rounded, "batch": round(rate, 1), "share": round(rate / best, 3)}


async def measure_wait(api: Api, material: Material, rate: float, requests: int, rounds: int) -> dict[str, object]:
    without, beside = [], []
    done = 0
    seconds = 0.0
    for seed in range(rounds):
        await asyncio.sleep(PAUSE_SECONDS)
        without += await first_tokens(api.port, material.bodies(requests // rounds, stream=True), rate, seed)
        bodies = material.bodies(requests // rounds, stream=True)
        batch = await api.start_batch(material.lines(int(60 * requests / rounds / rate) + 200))
        before, started = await api.completed(batch, 1), time.perf_counter()
        beside += await first_tokens(api.port, bodies, rate, seed)
        done += await api.completed(batch) - before
        seconds += time.perf_counter() - started
        await api.cancel(batch)
    return {
        "interactive requests/s": rate,
        "requests": len(beside),
        "without a batch": in_milliseconds(without),
        "with a batch": in_milliseconds(beside),
        "p95 ratio": round(percentile(beside, 95) / percentile(without, 95), 2),
        "the batch's requests/s": round(done / seconds, 1),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def in_milliseconds(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": round(1000 * percentile(values, percent), 1) for percent in (50, 95)}


async def measure(port: int, chosen: argparse.Namespace) -> None:
    api, material = Api(port), Material()
    if chosen.requests:
        print(json.dumps(await measure_use(api, material, chosen.requests)), flush=True)
    for rate in chosen.rates:
        print(json.dumps(await measure_wait(api, material, rate, chosen.interactive, chosen.rounds)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=800, help="of a batch on an idle engine; 0 leaves it out")
    parser.add_argument("--interactive", type=int, default=160, help="interactive requests of each kind")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="*", default=[1.5, 6.0], help="interactive requests in a second")
    parser.add_argument(
        "--quiet-seconds", type=float, default=QUIET_SECONDS, help="after which a batch uses the whole engine"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        server_command = [sys.executable, "-c", SERVER.format(chosen.quiet_seconds), "serve"]
        server_command += ["--served-model-name", MODEL, "--port", str(port), "--log-level", "warning"]
        server_command += ["--data-dir", str(Path(folder) / "data"), "--min-free-disk-bytes", "0"]
        started = time.monotonic()
        server = subprocess.Popen(server_command, env=os.environ | ENVIRONMENT)
        try:
            first_answer(port, server, started, 120)
            asyncio.run(measure(port, chosen))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
