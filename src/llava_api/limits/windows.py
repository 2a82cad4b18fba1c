"""Counts of the current minute, in this process, in a Redis that several servers share, or in a fleet's own process.

A window is a minute that begins with the first thing counted in it. What is counted afterwards (the tokens of an
answer) may exceed the limit; that is a debt until the window ends. If Redis does not answer, each server counts on its
own: an outage of Redis fails no request, and delays one by a quarter of a second at most.
"""

import asyncio
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_api.errors import StartupError

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
MOST_WINDOWS = 200_000
REDIS_SECONDS = 0.25
"""Longest wait for Redis."""
REDIS_PAUSE_SECONDS = 1.0
"""Pause after a failure, so that not every request waits for Redis."""
LOG_SECONDS = 10.0
REDIS_URL = re.compile(r"rediss?://[^\s/]+:\d+(/\d*)?(\?\S*)?|redis\+unix:///\S+")
FLEET = "fleet+unix://"
"""Before the path of a fleet's socket in the setting's place, with #NAME if a model is counted for itself."""
WRONG_URL = "--rate-limit-redis-url: write it as redis://HOST:PORT, rediss://HOST:PORT or redis+unix:///PATH"
NO_PACKAGE = "--rate-limit-redis-url needs the redis package: pip install 'llava-api[redis]'"

SCRIPT = """
if ARGV[1] ~= '0' then
  redis.call('SET', KEYS[1], 0, 'PX', ARGV[2], 'NX')
  redis.call('INCRBY', KEYS[1], ARGV[1])
end
return {tonumber(redis.call('GET', KEYS[1]) or 0), redis.call('PTTL', KEYS[1])}
"""
"""Adds to a window, which it opens if necessary, and returns its count and its remaining milliseconds."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class WindowState:
    """The current window of one caller."""

    limit: int
    counted: int
    ends_at: float
    """By the clock of the windows; now, if nothing is counted yet."""

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.counted)

    @property
    def exceeded(self) -> bool:
        return self.counted > self.limit


class Windows:
    """Counts by kind ("requests", "tokens", "images") and caller, in ``redis`` if it is given, else in this process.

    In this process there are at most ``most`` windows; beyond that the oldest are forgotten.
    """

    def __init__(
        self,
        redis: "Redis | FleetCounts | None" = None,
        clock: Clock = time.monotonic,
        seconds: float = WINDOW_SECONDS,
        most: int = MOST_WINDOWS,
    ) -> None:
        self.clock = clock
        self.seconds = seconds
        self.most = most
        self.own: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """The count and the end of each window in this process, the first to end first: all last equally long."""
        self.redis = redis
        self.script = None if redis is None else redis.register_script(SCRIPT)
        self.redis_paused_until = 0.0
        self.redis_fails = False
        """Whether Redis did not answer the last time that it was asked."""
        self.logged_at = -LOG_SECONDS

    async def state(self, kind: str, caller: str, limit: int) -> WindowState:
        return await self.add(kind, caller, limit, 0)

    async def add(self, kind: str, caller: str, limit: int, count: int) -> WindowState:
        """Count, even beyond the limit, and return the window's state after it."""
        # The limit is not part of the key: when it is changed, what is already counted stays counted.
        key = f"llava-api:{kind}:{caller}"
        counted, ends_at = await self.add_in_redis(key, count) or self.add_here(key, count)
        return WindowState(limit, counted, ends_at)

    def add_here(self, key: str, count: int) -> tuple[int, float]:
        """The window's count in this process, and its end."""
        now = self.clock()
        while self.own and (len(self.own) > self.most or next(iter(self.own.values()))[1] <= now):
            self.own.popitem(last=False)
        counted, ends_at = self.own.get(key, (0, now + self.seconds))
        if not counted + count:
            return 0, now
        self.own[key] = (counted + count, ends_at)
        return self.own[key]

    def count_for_server(self, key: str, count: int) -> tuple[int, int]:
        """What ``FleetCounts`` of a model's server asks of its fleet: the count and the remaining milliseconds."""
        counted, ends_at = self.add_here(key, count)
        return counted, round(1000 * max(0.0, ends_at - self.clock()))

    async def add_in_redis(self, key: str, count: int) -> tuple[int, float] | None:
        """The window's count and its end; None if there is no Redis, or if it does not answer."""
        if self.script is None or time.monotonic() < self.redis_paused_until:
            return None
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                counted, milliseconds = await self.script(keys=[key], args=[count, int(self.seconds * 1000)])
        except Exception as error:  # Whatever the reason, counting must not fail a request.
            self.redis_paused_until = time.monotonic() + REDIS_PAUSE_SECONDS
            self.redis_fails = True
            self.log_failure(error)
            return None
        self.redis_fails = False
        return counted, self.clock() + max(0, milliseconds) / 1000

    def log_failure(self, error: Exception) -> None:
        if time.monotonic() - self.logged_at >= LOG_SECONDS:
            self.logged_at = time.monotonic()
            name = type(error).__name__
            whose = "The fleet" if isinstance(self.redis, FleetCounts) else "Redis"
            log.error("%s does not answer (%s): meanwhile this server counts rate limits for itself", whose, name)

    async def close(self) -> None:
        if self.redis is not None:
            await self.redis.aclose()


class FleetCounts:
    """The windows of the fleet that has started this server: a line of JSON each way over a Unix socket.

    Used as redis-py's client is, for the one script that there is.
    """

    def __init__(self, path: str, model: str) -> None:
        self.path = path
        self.suffix = of_model("", model)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.turn = asyncio.Lock()

    def register_script(self, script: str) -> "FleetCounts":
        return self

    async def __call__(self, keys: list[str], args: list[int]) -> tuple[int, int]:
        async with self.turn:
            try:
                if self.streams is None:
                    self.streams = await asyncio.open_unix_connection(self.path)
                reader, writer = self.streams
                writer.write(json.dumps([keys[0] + self.suffix, args[0]]).encode() + b"\n")
                counted, milliseconds = json.loads(await reader.readline())
            except BaseException:
                # An answer that still comes would be taken for the next one's.
                await self.aclose()
                raise
            return counted, milliseconds

    async def aclose(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def of_model(caller: str, model: str) -> str:
    """The caller at one model, or with "" at all."""
    return f"{caller} at {model}" if model else caller


def open_windows(redis_url: str | None) -> Windows:
    """Raises StartupError for an unusable URL. Redis itself need not run yet."""
    if redis_url is None:
        return Windows()
    if redis_url.startswith(FLEET):
        path, _, model = redis_url.removeprefix(FLEET).partition("#")
        return Windows(FleetCounts(path, model))
    # The messages do not repeat the URL, which may contain a password.
    if not REDIS_URL.fullmatch(redis_url):
        raise StartupError(WRONG_URL)
    try:
        from redis.asyncio import ConnectionPool, Redis
    except ImportError:
        raise StartupError(NO_PACKAGE) from None
    try:
        pool = ConnectionPool.from_url(
            redis_url.removeprefix("redis+"),
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
        )
        # Checks the options of the URL; opens no connection yet.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, OSError):
        raise StartupError(WRONG_URL) from None
    return Windows(Redis.from_pool(pool))
