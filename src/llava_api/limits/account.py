"""What one request is charged to: its caller's rate limits and the server's memory for requests.

A request is counted before its body is read, its images before one is fetched, its prompt's tokens before an image is
decoded, and its answer's tokens when it has ended, whatever the reason.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass, field

from llava_api.errors import ErrorCode, InvalidRequest, RateLimited
from llava_api.limits.memory import Holding, MemoryBudget
from llava_api.limits.table import CallerLimits, LimitTable
from llava_api.limits.windows import Windows, WindowState, open_windows
from llava_api.settings import Settings

SHORTEST_RETRY_SECONDS = 0.05
RETRY_AT_ONCE_SECONDS = 1.0
"""Retry-After if a caller has too many open requests: when one will end is unknown."""


class RateLimiter:
    def __init__(self, table: LimitTable, windows: Windows) -> None:
        self.table = table
        self.windows = windows
        self.at_once: Counter[str] = Counter()
        """Open requests by caller; callers without any are absent."""

    def account(self, caller: str, memory: MemoryBudget) -> "Account":
        return Account(caller, memory.hold(caller), self.table.limits_of(caller), self.windows, self.at_once)

    async def close(self) -> None:
        await self.windows.close()


class BatchLimiter(RateLimiter):
    """For the requests of batches, which no minute's limits hold for: they run when there is time for them.

    Their memory is counted as that of one caller, who gets half of it at most.
    """

    def account(self, caller: str, memory: MemoryBudget) -> "Account":
        limits = self.table.limits_of(caller)
        kept = CallerLimits(max_tokens_per_request=limits.max_tokens_per_request, weight=limits.weight)
        return Account(caller, memory.hold("batches"), kept, in_batch=True)


def open_limiter(settings: Settings) -> RateLimiter:
    """Raises StartupError for a wrong file of limits and for a wrong Redis URL."""
    return RateLimiter(LimitTable(settings), open_windows(settings.rate_limit_redis_url))


@dataclass(slots=True)
class Account:
    """A caller with the memory and the rate limits of one request. By default nothing is limited."""

    caller: str = ""
    memory: Holding = field(default_factory=lambda: MemoryBudget(sys.maxsize).hold(""))
    limits: CallerLimits = field(default_factory=CallerLimits)
    windows: Windows = field(default_factory=Windows)
    at_once: Counter[str] = field(default_factory=Counter)
    """Open requests by caller, of all callers."""
    states: dict[str, WindowState] = field(default_factory=dict)
    """The latest known state of each kind's window."""
    owed_tokens: int = 0
    """Tokens of the answer that are not counted yet."""
    entered: bool = False
    in_batch: bool = False

    @property
    def queue(self) -> str:
        """Whose turns it waits for while it is prepared: a caller's batches do not delay the caller itself."""
        return f"batches of {self.caller}" if self.in_batch else self.caller

    async def enter(self, spends_tokens: bool = True) -> None:
        """Count the request and occupy one of the caller's places; ``leave`` frees it. Raises RateLimited."""
        windows, limits = self.windows, self.limits
        if limits.tokens_per_minute is not None:
            self.states["tokens"] = await windows.state("tokens", self.caller, limits.tokens_per_minute)
        if limits.requests_per_minute is not None:
            requests = await windows.add("requests", self.caller, limits.requests_per_minute, 1)
            self.states["requests"] = requests
            if requests.exceeded:
                raise self.refusal(requests, "requests", "")
        tokens = self.states.get("tokens")
        if spends_tokens and tokens is not None and tokens.remaining == 0:
            raise self.refusal(tokens, "tokens", "")
        most = limits.max_requests_at_once
        if most is not None and self.at_once[self.caller] >= most:
            raise RateLimited(
                f"Your limit is {most} requests at the same time, and {most} are open: wait until one has ended.",
                kind="requests",
                code=ErrorCode.TOO_MANY_REQUESTS_AT_ONCE,
                retry_after_seconds=RETRY_AT_ONCE_SECONDS,
            )
        self.at_once[self.caller] += 1
        self.entered = True

    async def check(self) -> None:
        """Raises RateLimited if ``enter`` would refuse the request for its minute's rates. Counts nothing."""
        for kind, limit in (("requests", self.limits.requests_per_minute), ("tokens", self.limits.tokens_per_minute)):
            if limit is not None:
                self.states[kind] = await self.windows.state(kind, self.caller, limit)
                if not self.states[kind].remaining:
                    raise self.refusal(self.states[kind], kind, "")

    async def spend_images(self, count: int) -> None:
        """Raises RateLimited, and InvalidRequest if the count exceeds a whole minute's limit."""
        await self.spend("images", self.limits.images_per_minute, count)

    async def spend_prompt(self, tokens: int) -> None:
        """Raises RateLimited, and InvalidRequest if the count exceeds a whole minute's limit."""
        await self.spend("tokens", self.limits.tokens_per_minute, tokens)

    async def spend(self, kind: str, limit: int | None, count: int) -> None:
        if limit is None or count == 0:
            return
        if count > limit:
            raise InvalidRequest(
                f"This request has {count} {kind}, and your limit is {limit} in a minute: it can never pass. "
                "Send a smaller one.",
                code=ErrorCode.REQUEST_EXCEEDS_RATE_LIMIT,
            )
        state = await self.windows.state(kind, self.caller, limit)
        if state.remaining < count:
            self.states[kind] = state
            raise self.refusal(state, kind, f", and this request has {count}")
        self.states[kind] = await self.windows.add(kind, self.caller, limit, count)

    def owe(self, tokens: int) -> None:
        """Note tokens of an answer; ``settle`` counts them when the request ends."""
        self.owed_tokens += tokens

    async def settle(self) -> None:
        owed, self.owed_tokens = self.owed_tokens, 0
        limit = self.limits.tokens_per_minute
        if owed and limit is not None:
            self.states["tokens"] = await self.windows.add("tokens", self.caller, limit, owed)

    def leave(self) -> None:
        """Free the place that ``enter`` occupied. May be called more than once."""
        if self.entered:
            self.entered = False
            self.at_once[self.caller] -= 1
            if not self.at_once[self.caller]:
                del self.at_once[self.caller]

    def refusal(self, state: WindowState, kind: str, more: str) -> RateLimited:
        # If another limit is used up too, the caller has to wait for both.
        ends = [state.ends_at, *(other.ends_at for other in self.states.values() if not other.remaining)]
        seconds = max(max(ends) - self.windows.clock(), SHORTEST_RETRY_SECONDS)
        used = state.limit - state.remaining
        return RateLimited(
            f"Rate limit reached for {kind}: your limit is {state.limit} in a minute, {used} are used{more}. "
            f"Try again in {math.ceil(seconds)} s.",
            kind="tokens" if kind == "tokens" else "requests",
            retry_after_seconds=seconds,
        )

    def headers(self) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*`` headers, for the kinds that have a limit."""
        now = self.windows.clock()
        made = {}
        for kind in ("requests", "tokens"):
            state = self.states.get(kind)
            if state is not None:
                made[f"x-ratelimit-limit-{kind}"] = str(state.limit)
                made[f"x-ratelimit-remaining-{kind}"] = str(state.remaining)
                made[f"x-ratelimit-reset-{kind}"] = duration(state.ends_at - now)
        return made


def duration(seconds: float) -> str:
    """OpenAI's notation: 6m0s, 1.2s, 120ms."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    return f"{minutes}m{text}" if minutes else text
