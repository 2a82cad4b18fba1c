"""A rolling update under load, with real servers: what a Deployment does with the chart's defaults, on one machine.

    python -m benchmarks.rolling_update [--router]

Two servers with the demo checkpoint and the real engine stand behind a balancer of TCP connections, as pods behind a
Service. Clients of the ``openai`` package, with its own retries, ask about twice a second each. Then each server is
replaced: a new one starts and is let in when ``/health/ready`` says 200; the old one is taken out, goes on for the
seconds of preStop, gets SIGTERM and drains. Printed: what the clients saw in each phase, and how the old servers ended.

The balancer stands for kube-proxy and is as blind: it chooses by chance, once for a connection, and learns of a pod's
end a second late. With --router the clients ask ``llava-api route`` instead, without retries of their own. It knows the
addresses of all four servers, as a headless Service would name them one after the other.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import APIError, AsyncOpenAI

from benchmarks.machine import describe
from benchmarks.router import route
from benchmarks.servers import ENVIRONMENT, MODEL, die_with_parent, free_port, our_command
from llava_api.cli.flags import demo_folder

PRE_STOP_SECONDS, DRAIN_SECONDS = 10.0, 120
"""The chart's defaults."""
LATE_SECONDS = 1.0
PROBE_SECONDS = 1.0
PAUSE_SECONDS = 0.5
LONG_TOKENS = 400
CLIENTS = Path(__file__).parent.parent / "tests" / "clients"


class Pod:
    """A server and its place among the endpoints."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.port = free_port()
        self.log = scratch / f"{name}.log"
        self.in_service = False
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> float:
        """Seconds until it is let in."""
        began = time.monotonic()
        command = our_command(demo_folder() / "llava-tiny-1.5", self.port, ("--drain-timeout-seconds", "120"))
        with self.log.open("wb") as sink:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdout=sink,
                stderr=sink,
                # A pod has cores of its own; three engines with threads on all cores would wait for each other.
                env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        async with httpx.AsyncClient() as client:
            while self.process.returncode is None:
                with suppress(httpx.TransportError):
                    answer = await client.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=PROBE_SECONDS)
                    if answer.status_code == 200:
                        self.in_service = True
                        return time.monotonic() - began
                await asyncio.sleep(PROBE_SECONDS)
        raise RuntimeError(f"{self.name} ended:\n{self.log.read_text(errors='replace')[-3000:]}")

    async def end(self) -> tuple[int, float]:
        """As Kubernetes ends it: (exit code, seconds from SIGTERM to the end)."""
        assert self.process is not None
        removed = time.monotonic()
        await asyncio.sleep(LATE_SECONDS)
        self.in_service = False
        await asyncio.sleep(PRE_STOP_SECONDS - (time.monotonic() - removed))
        told = time.monotonic()
        self.process.terminate()
        return await self.process.wait(), time.monotonic() - told

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Balancer:
    """Each connection goes to a pod in service, chosen by chance, and stays there."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = pods
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = [pod for pod in self.pods if pod.in_service]
        # Cancelled at the end of the run.
        with suppress(OSError, asyncio.CancelledError):
            if there:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", random.choice(there).port)
                await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))
        writer.close()


async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
    sink.close()


@dataclass
class Phase:
    """What clients saw of the requests that began in it."""

    name: str
    began: float
    seconds: list[float] = field(default_factory=list)
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tried_again: Counter[str] = field(default_factory=Counter)
    """Answers that the client's own retries hid."""
    ended: float = 0.0

    def row(self) -> dict[str, Any]:
        ordered = sorted(self.seconds) or [0.0]
        return {
            "phase": self.name,
            "seconds": round(self.ended - self.began, 1),
            "answered": self.answered,
            "failed": dict(self.failed),
            "tried_again": dict(self.tried_again),
            "p50_seconds": round(ordered[len(ordered) // 2], 2),
            "p99_seconds": round(ordered[int(len(ordered) * 0.99)], 2),
            "answered_a_second": round(self.answered / (self.ended - self.began), 1),
        }


class Load:
    def __init__(self, port: int, clients: int, max_retries: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.max_retries = max_retries
        self.clients = clients
        self.over = False
        self.phases: list[Phase] = []
        self.questions = json.loads((CLIENTS / "questions.json").read_text())

    def enter(self, name: str) -> None:
        now = time.monotonic()
        if self.phases:
            self.phases[-1].ended = now
        self.phases.append(Phase(name, now))

    async def run(self) -> None:
        await asyncio.gather(*(self.ask_on(number) for number in range(self.clients)))

    async def ask_on(self, number: int) -> None:
        chance = random.Random(number)

        async def note(answer: httpx.Response) -> None:
            if answer.status_code >= 400:
                self.phases[-1].tried_again[str(answer.status_code)] += 1

        http = httpx.AsyncClient(event_hooks={"response": [note]}, timeout=180)
        async with AsyncOpenAI(
            base_url=self.base_url, api_key="none", http_client=http, max_retries=self.max_retries
        ) as client:
            while not self.over:
                # Pods have cores of their own. Here a third server starts on the cores of the two that answer.
                await asyncio.sleep(chance.expovariate(1 / PAUSE_SECONDS))
                phase, began = self.phases[-1], time.monotonic()
                try:
                    right = await self.ask(client, chance)
                except APIError as error:
                    phase.failed[type(error).__name__] += 1
                    continue
                if not right:
                    phase.failed["wrong answer"] += 1
                    continue
                phase.answered += 1
                phase.seconds.append(time.monotonic() - began)

    async def ask(self, client: AsyncOpenAI, chance: random.Random) -> bool:
        """One in twenty is a long stream, the others are images with known answers. True if it is whole."""
        if chance.random() < 0.05:
            said = [{"role": "user", "content": "Count."}]
            more = {"ignore_eos": True}
            stream = await client.chat.completions.create(
                model=MODEL, messages=said, stream=True, max_tokens=LONG_TOKENS, extra_body=more
            )
            finish = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
            return finish[-1] == "length"
        question = chance.choice(self.questions)
        image = base64.b64encode((CLIENTS / "pictures" / question["picture"]).read_bytes()).decode()
        content = [
            {"type": "text", "text": question["question"]},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        ]
        said = [{"role": "user", "content": content}]
        reply = await client.chat.completions.create(model=MODEL, messages=said, temperature=0, max_tokens=40)
        return bool(reply.choices[0].message.content == question["answer"])


@asynccontextmanager
async def routing(pods: list[Pod]) -> AsyncIterator[int]:
    """The port of a router before the pods."""
    port = free_port()
    command = route(port, [pod.port for pod in pods])
    process = await asyncio.create_subprocess_exec(*command, preexec_fn=die_with_parent)
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


async def retried(port: int) -> int:
    """Requests that the router gave to another server."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = [line for line in page.splitlines() if line.startswith("llava_api_router_retries_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in found)


async def update(scratch: Path, clients: int, quiet_seconds: float, routed: bool) -> dict[str, Any]:
    pods = [Pod(f"old-{number}", scratch) for number in range(2)]
    coming = [Pod(f"new-{number}", scratch) for number in range(2)]
    balancer = Balancer(pods)
    ends: list[dict[str, Any]] = []
    given_again = 0
    try:
        async with AsyncExitStack() as at_end:
            await at_end.enter_async_context(balancer.listening())
            port = await at_end.enter_async_context(routing([*pods, *coming])) if routed else balancer.port
            for pod in pods:
                await pod.start()
            if routed:
                await asyncio.sleep(2 * PROBE_SECONDS)
            load = Load(port, clients, max_retries=0 if routed else 2)
            load.enter("warming up")
            running = asyncio.create_task(load.run())
            await asyncio.sleep(quiet_seconds / 2)
            load.enter("before")
            await asyncio.sleep(quiet_seconds)
            for number, old in enumerate(list(pods)):
                load.enter(f"new-{number} starts")
                new = coming[number]
                pods.append(new)
                start_seconds = await new.start()
                print(f"{new.name} is in service after {start_seconds:.0f} s", file=sys.stderr)
                load.enter(f"old-{number} ends")
                code, seconds = await old.end()
                pods.remove(old)
                ends.append({"pod": old.name, "replaced_in": start_seconds, "exit_code": code, "drain": seconds})
            load.enter("after")
            await asyncio.sleep(quiet_seconds)
            load.over = True
            load.phases[-1].ended = time.monotonic()
            await running
            given_again = await retried(port) if routed else 0
    finally:
        for pod in pods:
            pod.kill()
    return {
        "machine": describe(),
        "clients": clients,
        "phases": [phase.row() for phase in load.phases[1:]],
        "ends": ends,
        "given_to_another_server": given_again,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--quiet-seconds", type=float, default=30.0, help="measured before and after the update")
    parser.add_argument(
        "--router", action="store_true", help="ask llava-api route instead of a balancer of connections"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(update(Path(scratch), arguments.clients, arguments.quiet_seconds, arguments.router))
    print(json.dumps(found, indent=2))
    lost = sum(sum(phase["failed"].values()) for phase in found["phases"])
    return 1 if lost or any(end["exit_code"] for end in found["ends"]) else 0


if __name__ == "__main__":
    sys.exit(main())
