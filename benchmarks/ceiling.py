"""The engine alone, offline, on the same prompts: what no server in front of it can exceed.

``python -m benchmarks.ceiling [--quick]``. The engine is started as ``serve`` starts it, with the same settings. The
prompts are those that our server makes: the application itself prepares every request, over ASGI and onto an engine
that writes them down, before the clock starts. Then they are given to the real engine, as many at a time as the
workload has clients.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import httpx
import uvloop

from benchmarks.checkpoint import endless_copy
from benchmarks.machine import describe
from benchmarks.options import chosen_rounds, chosen_workloads, make_parser
from benchmarks.scripted_engine import ScriptedEngine
from benchmarks.servers import our_command
from benchmarks.workloads import ANSWER_TOKENS, MODEL, Workload, make_material
from llava_api.chat.model import ServedModel, open_model
from llava_api.cli.flags import find_model, read_settings
from llava_api.cli.main import build_parser
from llava_api.engine.base import Engine, GenerationRequest
from llava_api.engine.vllm_start import start_engine
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.services import Services
from llava_api.settings import Settings

Rates = dict[str, list[float]]


async def prepared(bodies: Sequence[bytes], model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """What our server would give the engine for these requests, in their order."""
    scripted = ScriptedEngine(tokens=1)
    scripted.requests = []
    services = Services(settings, model, scripted)
    app = create_app(settings, KeyRing(settings), services)
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            for body in bodies:
                reply = await client.post("/v1/chat/completions", content=body)
                reply.raise_for_status()
    finally:
        await services.close()
    return scripted.requests


async def requests_per_second(engine: Engine, requests: Sequence[GenerationRequest], concurrency: int) -> float:
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            tokens = 0
            async with aclosing(engine.generate(request)) as deltas:
                async for delta in deltas:
                    tokens += delta.completion_tokens
            if tokens != ANSWER_TOKENS:
                raise RuntimeError(f"an answer had {tokens} tokens instead of {ANSWER_TOKENS}")

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return len(requests) / (time.perf_counter() - began)


async def measure(workloads: list[Workload], rounds: range, seed: int, model: ServedModel, settings: Settings) -> Rates:
    engine = await start_engine(settings, model.to_load())
    rates: Rates = {}
    try:
        for number in rounds:
            for workload in workloads:
                material = make_material(workload, number - 1, seed)
                warm_up = await prepared(material.warm_up, model, settings)
                measured = await prepared(material.measured, model, settings)
                await requests_per_second(engine, warm_up, workload.concurrency)
                rate = await requests_per_second(engine, measured, workload.concurrency)
                print(f"{workload.name:<9} {rate:8.1f} requests/s", flush=True)
                rates.setdefault(workload.name, []).append(rate)
    finally:
        await engine.shutdown()
    return rates


def main() -> None:
    chosen = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = endless_copy(Path(find_model(chosen.model)), Path(scratch) / "checkpoint")
        # The very settings that our server is measured with.
        settings = read_settings(build_parser().parse_args(our_command(folder, 0)[3:]))
        model = open_model(str(folder), (MODEL,), settings)
        workloads, rounds = chosen_workloads(chosen), chosen_rounds(chosen)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rates = runner.run(measure(workloads, rounds, chosen.seed, model, settings))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": describe(), "requests_per_second": rates}, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # vLLM's objects complain for a page when they are torn down with the interpreter.


if __name__ == "__main__":
    main()
