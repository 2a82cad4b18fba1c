"""Counts of the last minute, by the ``limits`` package: in this process, or in a Redis that several servers share.

A window is a minute that begins with the first thing counted in it, so when it ends everything is there again, and
nobody waits for longer than a minute. What is counted afterwards (the tokens of an answer) may go beyond the limit; it
is a debt until the window's end. When Redis does not answer, each server counts for itself: an outage of the counting
stops nobody's work, and is waited for a quarter of a second at most.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from limits import RateLimitItemPerSecond
from limits.aio.storage import Storage
from limits.aio.storage.redis import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError

from llava_api.errors import StartupError

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60
MOST_WINDOWS = 200_000
REDIS_SECONDS = 0.25
"""Longest wait for Redis."""
REDIS_PAUSE_SECONDS = 1.0
"""After a failure Redis is left alone for so long, so that not each request waits for it."""
LOG_SECONDS = 10.0
REDIS_ROUNDING_SECONDS = 0.5
"""Redis tells the rest of a window in whole seconds, rounded."""
REDIS_URL = re.compile(r"rediss?://[^\s/]+:\d+(/\d*)?(\?\S*)?|redis\+unix:///\S+")
NO_URL = "--rate-limit-redis-url: write it as redis://HOST:PORT, rediss://HOST:PORT or redis+unix:///PATH"
NO_PACKAGE = "--rate-limit-redis-url needs the redis package: pip install 'llava-api[redis]'"
PREFIX = "llava-api"

Result = TypeVar("Result")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Stand:
    """One window of one caller as it stands."""

    limit: int
    remaining: int
    """0 also where there is a debt."""
    ends_at: float
    """On the clock of the windows; not after now where nothing is counted yet."""


class OwnCounts(Storage):
    """In this process's memory; all its windows last equally long.

    The package's own looks through all windows at each count: 1.2 ms with 10,000 callers, 18 ms with 100,000. Here
    those that begin first end first, so only what has ended is looked at. Beyond ``most`` the oldest are forgotten.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock = time.monotonic, most: int = MOST_WINDOWS) -> None:
        super().__init__()
        self.clock = clock
        self.most = most
        self.windows: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """What is counted, and until when, in the order of the ends."""

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def forget(self) -> None:
        now = self.clock()
        while self.windows:
            _, ends_at = next(iter(self.windows.values()))
            if ends_at > now and len(self.windows) <= self.most:
                return
            self.windows.popitem(last=False)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        self.forget()
        counted, ends_at = self.windows.get(key, (0, self.clock() + expiry))
        self.windows[key] = (counted + amount, ends_at)
        return counted + amount

    async def get(self, key: str) -> int:
        self.forget()
        return self.windows.get(key, (0, 0.0))[0]

    async def get_expiry(self, key: str) -> float:
        return self.windows.get(key, (0, self.clock()))[1]

    async def check(self) -> bool:
        return True

    async def clear(self, key: str) -> None:
        self.windows.pop(key, None)

    async def reset(self) -> int | None:
        count = len(self.windows)
        self.windows.clear()
        return count


class Window(RateLimitItemPerSecond):
    """Is found by its kind and its caller alone: what is counted stays counted where the limit is changed.

    Requests that were refused are counted too, until the minute is over.
    """

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return "/".join([self.namespace, *map(str, identifiers)])


class Windows:
    """Counts by kind ("requests", "tokens", "images") and caller. ``redis``: counts that other servers share."""

    def __init__(
        self, redis: RedisStorage | None = None, clock: Clock = time.monotonic, seconds: int = WINDOW_SECONDS
    ) -> None:
        self.clock = clock
        self.seconds = seconds
        self.own = FixedWindowRateLimiter(OwnCounts(clock))
        self.redis = redis
        self.shared = None if redis is None else FixedWindowRateLimiter(redis)
        self.redis_rests_until = 0.0
        self.logged_at = -LOG_SECONDS

    async def add(self, kind: str, caller: str, limit: int, count: int) -> tuple[bool, Stand]:
        """Whether it was within the limit, and how things stand after it."""

        async def counted(windows: FixedWindowRateLimiter) -> tuple[bool, Stand]:
            item = self.item(kind, limit)
            within = await windows.hit(item, caller, cost=count)
            return within, await self.stand_in(windows, item, caller)

        return await self.ask(counted)

    async def stand(self, kind: str, caller: str, limit: int) -> Stand:
        return await self.ask(lambda windows: self.stand_in(windows, self.item(kind, limit), caller))

    def item(self, kind: str, limit: int) -> Window:
        return Window(limit, self.seconds, kind)

    async def stand_in(self, windows: FixedWindowRateLimiter, item: Window, caller: str) -> Stand:
        ends_at, remaining = await windows.get_window_stats(item, caller)
        if windows is self.shared:
            # The package tells the time of day.
            left = ends_at - time.time() + REDIS_ROUNDING_SECONDS if remaining < item.amount else 0.0
            ends_at = self.clock() + min(left, self.seconds)
        return Stand(item.amount, remaining, ends_at)

    async def ask(self, work: Callable[[FixedWindowRateLimiter], Awaitable[Result]]) -> Result:
        """Of the shared counts; of this process's own where there are none, or Redis does not answer."""
        if self.shared is not None and time.monotonic() >= self.redis_rests_until:
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    return await work(self.shared)
            except Exception as error:  # Whatever it is: the counting must not fail a request.
                self.redis_rests_until = time.monotonic() + REDIS_PAUSE_SECONDS
                self.complain(error)
        return await work(self.own)

    def complain(self, error: Exception) -> None:
        if time.monotonic() - self.logged_at >= LOG_SECONDS:
            self.logged_at = time.monotonic()
            reason = type(error.__cause__ if isinstance(error, StorageError) else error).__name__
            log.error("Redis does not answer (%s): meanwhile this server counts rate limits for itself", reason)

    async def close(self) -> None:
        if self.redis is not None:
            await client_of(self.redis).aclose()


def client_of(storage: RedisStorage) -> Any:
    return cast(RedispyBridge, storage.bridge).get_connection()


def open_windows(redis_url: str | None) -> Windows:
    """Raises StartupError for a URL that no Redis can be reached by; one that is down now may come up later."""
    if redis_url is None:
        return Windows()
    # The URL is not shown: it may hold a password.
    if not REDIS_URL.fullmatch(redis_url):
        raise StartupError(NO_URL)
    try:
        storage = RedisStorage(
            redis_url,
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix=PREFIX,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
        )
        # Its options are looked at with the first connection only, which this makes and does not open.
        client_of(storage).connection_pool.make_connection()
    except ConfigurationError as error:
        missing = "prerequisite" in str(error)
        raise StartupError(NO_PACKAGE if missing else NO_URL) from None
    except (ValueError, TypeError, OSError):
        raise StartupError(NO_URL) from None
    return Windows(storage)
