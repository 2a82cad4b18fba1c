"""How much one caller may ask for: requests, tokens and pictures in a minute, and requests at once.

A request is counted before its body is read, its pictures before one is fetched, its prompt's tokens before a picture
is decoded, and the tokens of its answer when it is over, however it ended.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from llava_api.errors import ErrorCode, InvalidRequest, RateLimited
from llava_api.limits.table import CallerLimits, LimitTable
from llava_api.limits.windows import Stand, Windows, open_windows
from llava_api.settings import Settings

SOONEST_SECONDS = 0.05
"""Nobody is told to come again at once."""
AT_ONCE_SECONDS = 1.0
"""Nobody knows when one of the requests at once ends."""


class RateLimiter:
    """Of one server."""

    def __init__(self, table: LimitTable, windows: Windows) -> None:
        self.table = table
        self.windows = windows
        self.at_once: Counter[str] = Counter()
        """Requests in the works, by caller; none of a caller without."""

    def allowance(self, caller: str) -> "Allowance":
        return Allowance(caller, self.table.limits_of(caller), self)

    async def close(self) -> None:
        await self.windows.close()


def open_limiter(settings: Settings) -> RateLimiter:
    """Raises StartupError for a file of limits that is wrong, and for a Redis URL that is none."""
    return RateLimiter(LimitTable(settings), open_windows(settings.rate_limit_redis_url))


@dataclass(slots=True)
class Allowance:
    """What one request's caller may, with what is left of it. ``leave`` ends it, and may be called more than once."""

    caller: str
    limits: CallerLimits
    limiter: RateLimiter
    stands: dict[str, Stand] = field(default_factory=dict)
    """By kind, as they stood last."""
    owed_tokens: int = 0
    """Made for this request and not counted yet."""
    entered: bool = False

    async def enter(self, spends_tokens: bool = True) -> None:
        """Count the request and take a place of those at once. Raises RateLimited."""
        await self.look("tokens", self.limits.tokens_per_minute)
        limit = self.limits.requests_per_minute
        if limit is not None:
            within, stand = await self.limiter.windows.add("requests", self.caller, limit, 1)
            self.stands["requests"] = stand
            if not within:
                raise self.refusal(stand, "requests", "")
        tokens = self.stands.get("tokens")
        if spends_tokens and tokens is not None and tokens.remaining == 0:
            raise self.refusal(tokens, "tokens", "")
        at_once, most = self.limiter.at_once, self.limits.max_requests_at_once
        if most is not None and at_once[self.caller] >= most:
            raise RateLimited(
                f"You may have {most} requests in the works at once, and have them: send the next when one has ended.",
                kind="requests",
                code=ErrorCode.TOO_MANY_REQUESTS_AT_ONCE,
                retry_after_seconds=AT_ONCE_SECONDS,
            )
        at_once[self.caller] += 1
        self.entered = True

    async def spend_images(self, count: int) -> None:
        """Raises RateLimited, and InvalidRequest for more than a minute's worth."""
        await self.spend("images", self.limits.images_per_minute, count, "pictures")

    async def spend_prompt(self, tokens: int) -> None:
        """Raises RateLimited, and InvalidRequest for more than a minute's worth."""
        await self.spend("tokens", self.limits.tokens_per_minute, tokens, "tokens")

    async def spend(self, kind: str, limit: int | None, count: int, what: str) -> None:
        if limit is None or count == 0:
            return
        if count > limit:
            raise InvalidRequest(
                f"This request has {count} {what}, and your limit is {limit} in a minute: it can never pass. "
                "Send a smaller one.",
                code=ErrorCode.REQUEST_EXCEEDS_RATE_LIMIT,
            )
        stand = await self.limiter.windows.stand(kind, self.caller, limit)
        if stand.remaining >= count:
            _, self.stands[kind] = await self.limiter.windows.add(kind, self.caller, limit, count)
            return
        self.stands[kind] = stand
        raise self.refusal(stand, what, f", and this request has {count}")

    def owe(self, tokens: int) -> None:
        """Tokens of an answer; ``settle`` counts them."""
        self.owed_tokens += tokens

    async def settle(self) -> None:
        owed, self.owed_tokens = self.owed_tokens, 0
        limit = self.limits.tokens_per_minute
        if owed and limit is not None:
            _, self.stands["tokens"] = await self.limiter.windows.add("tokens", self.caller, limit, owed)

    async def look(self, kind: str, limit: int | None) -> None:
        if limit is not None:
            self.stands[kind] = await self.limiter.windows.stand(kind, self.caller, limit)

    def leave(self) -> None:
        """Give the place of those at once back."""
        if self.entered:
            self.entered = False
            self.limiter.at_once[self.caller] -= 1
            if not self.limiter.at_once[self.caller]:
                del self.limiter.at_once[self.caller]

    def refusal(self, stand: Stand, what: str, more: str) -> RateLimited:
        # Where another limit is used up too, that one is waited for as well.
        used_up = [other.ends_at for other in self.stands.values() if not other.remaining]
        seconds = max(max([stand.ends_at, *used_up]) - self.limiter.windows.clock(), SOONEST_SECONDS)
        used = stand.limit - stand.remaining
        return RateLimited(
            f"Rate limit reached for {what}: your limit is {stand.limit} in a minute, {used} are used{more}. "
            f"Try again in {math.ceil(seconds)} s.",
            kind="tokens" if what == "tokens" else "requests",
            retry_after_seconds=seconds,
        )

    def headers(self) -> dict[str, str]:
        """OpenAI's, of what is limited."""
        now = self.limiter.windows.clock()
        made = {}
        for kind in ("requests", "tokens"):
            stand = self.stands.get(kind)
            if stand is not None:
                made[f"x-ratelimit-limit-{kind}"] = str(stand.limit)
                made[f"x-ratelimit-remaining-{kind}"] = str(stand.remaining)
                made[f"x-ratelimit-reset-{kind}"] = duration(stand.ends_at - now)
        return made


def duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.2s, 120ms."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    written = f"{rest / 1000:g}s"
    return f"{minutes}m{written}" if minutes else written
