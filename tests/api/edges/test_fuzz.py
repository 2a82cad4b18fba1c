"""Thousands of damaged requests cause no 500 and leave no caller waiting, and a good one after them is answered."""

import asyncio
import random
import re

import pytest

from tests.api.test_chat import CHAT, text_body
from tests.support.running_server import RunningServer, post
from tests.support.scripted_engine import ScriptedEngine

JSON = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}'
GOOD = [
    post(CHAT, text_body()),
    post(CHAT, text_body(stream=True), "Authorization: Bearer x", "Accept: */*"),
    post("/v1/completions", {"model": "tiny", "prompt": "Hello"}, "Content-Type: application/json"),
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (20, JSON[:20], len(JSON) - 20, JSON[20:]),
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://a/health/live?x=y HTTP/1.0\r\nConnection: close\r\n\r\n",
    b"HEAD /v1/models/tiny HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]
SPICE = [
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%", b"%00", b"%2f", b"..", b"//"),
    *(b"\xff", b"\xc3\xa9"),
    *(
        b"*",
        b"#",
        b"?",
        b"[",
        b"{",
        b'"',
        b"-1",
        b"99999999999",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"Host: b\r\n",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Connection: close\r\n",
    ),
    *(b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Expect: 100-continue\r\n", b"a" * 5000, b"X: a\r\n" * 200),
]


def damaged(chance: random.Random) -> bytes:
    made = bytearray(chance.choice(GOOD))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        place = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0:
                made[place:place] = chance.choice(SPICE)
            case 1:
                made[place : place + chance.randrange(1, 20)] = b""
            case 2:
                made[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                made[place : place + 4] = chance.choice(SPICE)
            case 4:
                start = chance.randrange(len(made) + 1)
                made[place:place] = made[start : start + 40]
            case 5:
                made += chance.choice(GOOD)
    return bytes(made)


@pytest.fixture
def settings_made() -> dict[str, object]:
    return {
        "max_header_bytes": 4096,
        "receive_timeout_seconds": 0.3,
        "body_timeout_seconds": 0.3,
        "keep_alive_seconds": 1,
    }


@pytest.mark.parametrize("seed", range(4))
async def test_damaged_requests(
    edge: RunningServer, engine: ScriptedEngine, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    statuses: list[int] = []
    at_once = asyncio.Semaphore(40)

    async def one(request: bytes, cut: int) -> None:
        async with at_once:
            caller = await edge.connect()
            said = b""
            try:
                async with asyncio.timeout(10):
                    caller.writer.write(request[:cut])
                    await asyncio.sleep(0)
                    caller.writer.write(request[cut:])
                    # An idle connection may stay open. But an answer must come, or the connection must close.
                    said = await caller.reader.read(65_536)
            except ConnectionError:
                pass
            finally:
                await caller.close()
                edge.connections.remove(caller)
            statuses.extend(int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", said))

    requests = [damaged(chance) for _ in range(1000)]
    await asyncio.gather(*(one(request, chance.randrange(len(request) + 1)) for request in requests))
    assert not [status for status in statuses if status >= 500]
    # The damage was not too large: some were still good, some were refused here, some by the app.
    assert {200, 400, 404, 408} <= set(statuses)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert (await edge.ask(post(CHAT, text_body()))).status == 200
    async with asyncio.timeout(10):
        while engine.unfinished or len(edge.server.server_state.connections) > 1:
            await asyncio.sleep(0.05)
