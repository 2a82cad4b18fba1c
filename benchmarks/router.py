"""What a router costs, and what it loses: ``python -m benchmarks.router [cost] [loss]``.

The servers are the product's own ``serve`` processes with a scripted engine, so that the router is what is measured.

cost: one request at a time, to a server and to the router before it by turns, and then 32 at a time.
loss: 24 clients without retries of their own, every second one of them with streams, while one of three replicas gets
SIGTERM (and drains), and later another SIGKILL. Each is started again. A stream that had begun ends with its replica.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx
import uvloop

from benchmarks.machine import describe
from benchmarks.scripted_engine import ScriptedEngine
from benchmarks.servers import die_with_parent, free_port
from llava_api.cli import serve
from llava_api.cli.flags import demo_folder
from llava_api.cli.main import main as llava_api
from llava_api.engine.base import Delta, GenerationRequest, ModelToLoad
from llava_api.settings import Settings

AS_SERVER = "--as-server"
CHAT = "/v1/chat/completions"
MODEL = "llava-tiny-1.5"
REPLICAS, CLIENTS = 3, 24
Command = Callable[[int, list[int]], list[str]]
"""(the router's port, the servers' ports) -> command line"""


class PausingEngine(ScriptedEngine):
    def __init__(self, pause_seconds: float) -> None:
        super().__init__(tokens=16)
        self.pause_seconds = pause_seconds

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        async for delta in super().generate(request):
            if self.pause_seconds:
                await asyncio.sleep(self.pause_seconds)
            yield delta


def be_the_server(pause_seconds: float, arguments: list[str]) -> None:
    async def start(settings: Settings, model: ModelToLoad) -> PausingEngine:
        return PausingEngine(pause_seconds)

    serve.start_engine = start  # type: ignore[assignment]
    llava_api(arguments)


def route(port: int, servers: list[int]) -> list[str]:
    backends = [f"--backend=http://127.0.0.1:{server}" for server in servers]
    return [sys.executable, "-m", "llava_api", "route", f"--port={port}", "--log-level=warning", *backends]


class Process:
    def __init__(self, port: int, command: list[str]) -> None:
        self.port = port
        self.command = command
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(*self.command, preexec_fn=die_with_parent)

    async def ready(self, path: str = "/health/ready") -> None:
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{self.port}{path}")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def end(self, sent: int) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(sent)
        await self.process.wait()


def server(pause_seconds: float) -> Process:
    port = free_port()
    named = ["serve", str(demo_folder() / MODEL), f"--port={port}", f"--served-model-name={MODEL}"]
    arguments = [*named, "--log-level=warning", "--no-check-memory"]
    return Process(port, [sys.executable, "-m", "benchmarks.router", AS_SERVER, str(pause_seconds), *arguments])


@contextlib.asynccontextmanager
async def running(
    pause_seconds: float, replicas: int, command: Command
) -> AsyncIterator[tuple[list[Process], Process]]:
    """Servers, and a router before them."""
    servers = [server(pause_seconds) for _ in range(replicas)]
    port = free_port()
    router = Process(port, command(port, [one.port for one in servers]))
    try:
        for one in servers:
            await one.start()
        for one in servers:
            await one.ready()
        await router.start()
        await router.ready("/health" if command is not route else "/health/ready")
        yield servers, router
    finally:
        for one in (router, *servers):
            if one.process is not None:
                await one.end(signal.SIGKILL)


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16, **fields}


# What it costs


async def seconds_of(client: aiohttp.ClientSession, streamed: bool) -> float:
    began = time.perf_counter()
    async with client.post(CHAT, json=question("What can you do?", stream=streamed), raise_for_status=True) as answer:
        await answer.read()
    return time.perf_counter() - began


async def cost(command: Command, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with running(0, 1, command) as (servers, router), contextlib.AsyncExitStack() as at_end:
        # Of the clients in Python it takes the least of the processors' time, which servers and router need.
        clients = {
            name: await at_end.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))
            for name, port in (("direct", servers[0].port), ("routed", router.port))
        }
        for streamed in (False, True):
            seconds: dict[str, list[float]] = {name: [] for name in clients}
            for number in range(rounds + 50):
                for name, client in clients.items():
                    taken = await seconds_of(client, streamed)
                    if number >= 50:
                        seconds[name].append(taken * 1000)
            row = {f"{name} p50 ms": round(statistics.median(each), 2) for name, each in seconds.items()}
            row |= {f"{name} p99 ms": round(statistics.quantiles(each, n=100)[98], 2) for name, each in seconds.items()}
            row["added p50 ms"] = round(row["routed p50 ms"] - row["direct p50 ms"], 2)
            for name, client in clients.items():
                began = time.perf_counter()
                for _ in range(rounds // 32):
                    await asyncio.gather(*(seconds_of(client, streamed) for _ in range(32)))
                row[f"{name} requests/s at 32"] = round(rounds // 32 * 32 / (time.perf_counter() - began))
            found["streamed" if streamed else "whole"] = row
    return found


# What it loses


class Phase:
    def __init__(self, name: str) -> None:
        self.name = name
        self.ends: Counter[str] = Counter()


async def ask_on(number: int, client: httpx.AsyncClient, phases: list[Phase]) -> None:
    streamed, count = number % 2 == 1, 0
    while phases[-1].name != "end":
        phase, count, begun = phases[-1], count + 1, False
        try:
            body = question(f"Question {number}-{count}", stream=streamed)
            async with client.stream("POST", CHAT, json=body) as answer:
                text = b""
                async for piece in answer.aiter_bytes():
                    text, begun = text + piece, answer.status_code == 200
            whole = b"[DONE]" in text if streamed else answer.status_code == 200 and b'"finish_reason"' in text
            if whole:
                phase.ends["answered"] += 1
            else:
                phase.ends["stream cut" if begun and streamed else f"lost: {answer.status_code}"] += 1
        except httpx.HTTPError as error:
            phase.ends["stream cut" if begun and streamed else f"lost: {type(error).__name__}"] += 1


async def loss(command: Command, seconds: float) -> dict[str, Any]:
    async with running(0.03, REPLICAS, command) as (servers, router):
        phases = [Phase("quiet")]
        address = f"http://127.0.0.1:{router.port}"
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            asking = [asyncio.create_task(ask_on(number, client, phases)) for number in range(CLIENTS)]
            await asyncio.sleep(seconds)
            for one, sent in ((servers[0], signal.SIGTERM), (servers[1], signal.SIGKILL)):
                phases.append(Phase(f"{sent.name} for one of {REPLICAS}"))
                await one.end(sent)
                await asyncio.sleep(seconds)
                phases.append(Phase("it starts again"))
                await one.start()
                await one.ready()
                await asyncio.sleep(seconds)
            phases.append(Phase("end"))
            await asyncio.gather(*asking)
            with contextlib.suppress(httpx.HTTPError):
                page = (await client.get("/metrics")).text
                retried = [line for line in page.splitlines() if line.startswith("llava_api_router_retries_total")]
                phases[-1].ends["retried"] = sum(int(float(line.rpartition(" ")[2])) for line in retried)
    return {phase.name + f" ({number})": dict(phase.ends) for number, phase in enumerate(phases)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["cost", "loss", []], help="what to measure; default: both")
    parser.add_argument("--rounds", type=int, default=1000, help="of cost")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase of loss")
    chosen = parser.parse_args()
    found: dict[str, Any] = {"machine": describe()}
    if "cost" in chosen.parts or not chosen.parts:
        found["cost"] = uvloop.run(cost(route, chosen.rounds))
    if "loss" in chosen.parts or not chosen.parts:
        found["loss"] = asyncio.run(loss(route, chosen.seconds))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_SERVER]:
        be_the_server(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
