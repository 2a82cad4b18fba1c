"""Whose turn it is: keys, interactive requests, restarts, lost engines."""

import asyncio
import base64
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest

from llava_api.batch import job, room, runner
from llava_api.batch.lines import Findings, Lines, check
from llava_api.engine.base import Delta, GenerationRequest
from llava_api.images.load import MeasuredImage, RenderedImage
from tests.api.test_batches import HELLO, content, create, line, until
from tests.support.batch_server import Serve, Server, counted
from tests.support.image_files import encoded, noise
from tests.support.scripted_engine import ScriptedEngine


async def test_keys_see_only_their_own(server: Server) -> None:
    alice, bob = server.api("alice"), server.api("bob")
    made = await create(alice, [line("a")])
    await until(alice, made, "completed")
    for method in (bob.batches.retrieve, bob.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await method(made.id)
    assert (await bob.batches.list()).data == []
    with pytest.raises(openai.NotFoundError, match="no file of that id"):
        await bob.batches.create(
            input_file_id=made.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert (await server.metrics()).value("llava_api_completion_tokens_total", key="alice") == 3


async def test_the_open_batches_of_a_key_are_limited(serve: Serve, engine: ScriptedEngine) -> None:
    engine.pause_seconds = 0.05
    async with serve(engine, max_open_batches=1) as server:
        alice, bob = server.api("alice"), server.api("bob")
        made = await create(alice, [line("a")])
        with pytest.raises(openai.RateLimitError, match="wait until one has ended"):
            await create(alice, [line("a")])
        await create(bob, [line("a")])
        await until(alice, made, "completed")
        await create(alice, [line("a")])


async def test_no_minutes_limits(serve: Serve, engine: ScriptedEngine) -> None:
    async with serve(engine, requests_per_minute=100, tokens_per_minute=10, max_requests_at_once=1) as server:
        alice = server.api("alice")
        done = await until(alice, await create(alice, [line(str(number)) for number in range(20)]), "completed")
        assert done.error_file_id is None


async def test_keys_take_turns(serve: Serve, engine: ScriptedEngine) -> None:
    """A batch of one request does not wait for another key's thousand."""
    engine.pause_seconds = 0.02
    engine.max_num_seqs = 1
    async with serve(engine, isolate_caches=True) as server:
        alice, bob = server.api("alice"), server.api("bob")
        many = await create(alice, [line(str(number)) for number in range(1000)])
        await counted(alice, many.id)
        few = await create(bob, [line(str(number)) for number in range(5)])
        begun = len(engine.requests)
        await until(bob, few, "completed")
        said = Counter(str(request.cache_salt) for request in engine.requests[begun:])
        assert said["of key bob"] == 5
        assert said["of key alice"] < 20


async def test_keys_take_turns_with_their_input_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, checked = threading.Event(), []

    def check_in_time(lines: Lines, endpoint: str, *others: Any) -> Findings:
        assert gate.wait(20)
        checked.append(endpoint)
        return check(lines, endpoint, *others)

    monkeypatch.setattr(job, "check", check_in_time)
    alice, bob = server.api("alice"), server.api("bob")
    many = [await create(alice, [line(str(number))]) for number in range(5)]
    completions = line("a", {"model": "tiny", "prompt": "Hello"}, "/v1/completions")
    few = await create(bob, [completions], endpoint="/v1/completions")
    gate.set()
    for api, made in ((bob, few), *((alice, made) for made in many)):
        await until(api, made, "completed")
    assert checked.index("/v1/completions") <= 2


def shown(width: int) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(encoded(noise(width, 8), 'PNG')).decode()}"
    return HELLO | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


async def test_a_key_s_own_images_do_not_wait_for_those_of_its_batch(
    serve: Serve, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(engine, image_threads=1) as server:
        images, gate, widths = server.services.preparer.images, threading.Event(), []
        render = images.render_data

        def render_in_time(image: MeasuredImage) -> RenderedImage:
            assert gate.wait(20)
            widths.append(image.size[0])
            return render(image)

        monkeypatch.setattr(images, "render_data", render_in_time)
        alice = server.api("alice")
        made = await create(alice, [line(str(width), shown(width)) for width in range(10, 20)])
        async with asyncio.timeout(20):
            while images.decoding.admission.waiting < 9:
                await asyncio.sleep(0.01)
            asked = asyncio.create_task(alice.chat.completions.create(**shown(99)))
            while images.decoding.admission.waiting < 10:
                await asyncio.sleep(0.01)
        gate.set()
        await asked
        assert widths.index(99) <= 2
        await alice.batches.cancel(made.id)


async def test_large_requests_are_not_prepared_together(
    server: Server, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PREPARED_BYTES", 5000)
    engine.pause_seconds = 0.005
    assert server.services.batches is not None
    place, prepared = server.services.batches.room, []
    enter = place.enter

    def enter_and_count(run: room.LineRun) -> None:
        enter(run)
        prepared.append(sum(not run.admitted for run in place.runs))

    monkeypatch.setattr(place, "enter", enter_and_count)
    alice = server.api("alice")
    for size, most in ((2000, 2), (6000, 1)):
        prepared.clear()
        lines = [line(str(number), HELLO | {"user": "x" * size}) for number in range(20)]
        await until(alice, await create(alice, lines), "completed")
        assert max(prepared) == most


async def test_a_removed_key_s_batch_rests_until_it_is_back(
    server: Server, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "WATCH_SECONDS", 0.01)
    alice, kept = server.api("alice"), dict(server.keys.value)
    engine.pause_seconds = 0.01
    made = await create(alice, [line(str(number)) for number in range(200)])
    await counted(alice, made.id)
    server.keys.value.pop("alice")
    while engine.unfinished:
        await asyncio.sleep(0.01)
    begun = len(engine.requests)
    await asyncio.sleep(0.05)
    assert len(engine.requests) == begun < 200
    server.keys.value.update(kept)
    engine.pause_seconds = 0
    server.services.batches.fill()  # type: ignore[union-attr]
    await until(alice, made, "completed")


async def test_an_interactive_request_does_not_wait_for_a_batch(server: Server, engine: ScriptedEngine) -> None:
    """All slots are taken by a batch: its answers are broken off, and are there once at the end all the same."""
    alice, bob = server.api("alice"), server.api("bob")
    engine.pause_seconds = 0.05
    made = await create(alice, [line(str(number)) for number in range(100)])
    await counted(alice, made.id)
    busy: list[int] = []
    for _ in range(5):
        stream = await bob.chat.completions.create(**HELLO, stream=True)  # type: ignore[call-overload]
        async for _ in stream:
            busy.append(engine.unfinished)
        await asyncio.sleep(0.05)
    # At most a quarter of the slots beside the interactive answer, as soon as the others have been broken off.
    assert sorted(busy)[len(busy) // 2] <= 1 + engine.max_num_seqs * room.BESIDE
    engine.pause_seconds = 0
    done = await until(alice, made, "completed")
    output = await content(alice, done.output_file_id)
    assert Counter(each["custom_id"] for each in output) == Counter(map(str, range(100)))
    assert (await server.metrics()).total("llava_api_batch_requests_total", outcome="put_back") > 0


async def test_a_batch_goes_on_beside_endless_chats(server: Server, engine: ScriptedEngine) -> None:
    alice, bob = server.api("alice"), server.api("bob")
    ended = asyncio.Event()

    async def chat() -> None:
        while not ended.is_set():
            await bob.chat.completions.create(**HELLO)

    engine.pause_seconds = 0.01
    chatting = [asyncio.create_task(chat()) for _ in range(2)]
    made = await create(alice, [line(str(number)) for number in range(5)])
    await until(alice, made, "completed")
    ended.set()
    await asyncio.gather(*chatting)


async def test_a_batch_goes_on_after_a_restart(serve: Serve, engine: ScriptedEngine, tmp_path: Path) -> None:
    """In the middle, and with half a line at the end of its output, as a power cut leaves it."""
    engine.pause_seconds = 0.005
    async with serve(engine) as server:
        alice = server.api("alice")
        lines = [line(str(number), HELLO | ({"model": "no"} if number % 10 == 3 else {})) for number in range(300)]
        made = await create(alice, lines)
        told = await counted(alice, made.id, 20)
    output = next(path for path in (tmp_path / "data" / "files").iterdir() if b"chat.completion" in path.read_bytes())
    with output.open("ab") as file:
        file.write(b'{"id":"batch_req_' + b"0" * 8)
    again = ScriptedEngine()
    async with serve(again) as server:
        alice = server.api("alice")
        assert await counted(alice, made.id, 0) >= told
        done = await until(alice, made, "completed")
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 300, "completed": 270, "failed": 30}
        answers = await content(alice, done.output_file_id)
        errors = await content(alice, done.error_file_id)
        assert Counter(each["custom_id"] for each in (*answers, *errors)) == Counter(map(str, range(300)))
        assert done.usage is not None
        assert done.usage.output_tokens == 3 * 270
    assert len(again.requests) <= 270 - told


async def test_the_server_stops_in_every_state(serve: Serve, engine: ScriptedEngine) -> None:
    """Right after creation, after a cancellation, and when the input is gone."""
    engine.pause_seconds = 0.005
    async with serve(engine) as server:
        alice = server.api("alice")
        fresh = await create(alice, [line("a")])
        cancelled = await create(alice, [line(str(number)) for number in range(300)])
        await alice.batches.cancel(cancelled.id)
        robbed = await create(alice, [line(str(number)) for number in range(300)])
        await counted(alice, robbed.id)
        await alice.files.delete(robbed.input_file_id)
    async with serve(engine) as server:
        alice = server.api("alice")
        await until(alice, fresh, "completed")
        await until(alice, cancelled, "cancelled")
        failed = await until(alice, robbed, "failed")
        assert failed.errors is not None
        assert [error.code for error in failed.errors.data or ()] == ["file_not_found"]
        assert failed.request_counts is not None
        assert len(await content(alice, failed.output_file_id)) == failed.request_counts.completed > 0


async def test_a_server_that_drains_begins_no_request(serve: Serve, engine: ScriptedEngine) -> None:
    engine.pause_seconds = 0.01
    async with serve(engine) as server:
        alice = server.api("alice")
        made = await create(alice, [line(str(number)) for number in range(300)])
        await counted(alice, made.id)
        server.app.state.lifecycle.draining = True
        begun = len(engine.requests)
        async with asyncio.timeout(20):
            while engine.unfinished:
                await asyncio.sleep(0.01)
        assert len(engine.requests) <= begun + 2 * engine.max_num_seqs
    engine.pause_seconds = 0
    async with serve(engine) as server:
        await until(server.api("alice"), made, "completed")


async def test_a_request_that_the_engine_is_lost_with_three_times_fails(
    server: Server, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes others with it once, at most; they run again."""
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.1)
    engine.pause_seconds = 0.002
    generate, deaths = engine.generate, 0

    async def lost_at_seven_tokens(request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        nonlocal deaths
        if request.max_tokens == 7:
            deaths += 1
            engine.dead = True
            asyncio.get_running_loop().call_later(0.05, setattr, engine, "dead", False)
        async for delta in generate(request):
            yield delta

    monkeypatch.setattr(engine, "generate", lost_at_seven_tokens)
    alice = server.api("alice")
    bodies = [HELLO | {"max_tokens": 7 if number == 9 else 8} for number in range(40)]
    made = await create(alice, [line(str(number), body) for number, body in enumerate(bodies)])
    done = await until(alice, made, "completed")
    (failed,) = await content(alice, done.error_file_id)
    assert failed["custom_id"] == "9"
    assert failed["response"]["status_code"] == 503
    assert failed["response"]["body"]["error"]["code"] == "engine_stopped"
    assert len(await content(alice, done.output_file_id)) == 39
    assert deaths == runner.MOST_LOSSES
