"""What one caller may ask for, and what it is told."""

from random import Random

import pytest

from llava_api.errors import InvalidRequest, RateLimited
from llava_api.limits.account import Account, RateLimiter, duration
from llava_api.limits.memory import MemoryBudget
from llava_api.limits.table import LimitTable, caller_of_key
from llava_api.limits.windows import Windows
from llava_api.settings import Settings
from tests.support.clock import Clock

MEMORY = MemoryBudget(1)
ANNE, BEN = caller_of_key("anne"), caller_of_key("ben")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limiter_of(clock: Clock, **settings: object) -> RateLimiter:
    return RateLimiter(LimitTable(Settings.model_validate(settings)), Windows(clock=clock))


async def entered(limiter: RateLimiter, caller: str = ANNE) -> Account:
    account = limiter.account(caller, MEMORY)
    await account.enter()
    return account


async def test_one_caller_is_refused_and_the_other_is_not_touched(clock: Clock) -> None:
    limiter = limiter_of(clock, requests_per_minute=3)
    for _ in range(3):
        await entered(limiter)
    clock.now += 12.5
    for _ in range(100):
        with pytest.raises(RateLimited) as refused:
            await entered(limiter)
    error = refused.value
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.retry_after_seconds == pytest.approx(47.5)
    assert error.message == (
        "Rate limit reached for requests: your limit is 3 in a minute, 3 are used. Try again in 48 s."
    )
    assert (await entered(limiter, BEN)).headers()["x-ratelimit-remaining-requests"] == "2"
    clock.now += error.retry_after_seconds or 0
    assert (await entered(limiter)).headers()["x-ratelimit-remaining-requests"] == "2"


async def test_an_answers_tokens_are_a_debt_that_the_next_request_waits_for(clock: Clock) -> None:
    limiter = limiter_of(clock, tokens_per_minute=100)
    account = await entered(limiter)
    await account.spend_prompt(60)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "40"
    account.owe(500)
    await account.settle()
    await account.settle()
    assert account.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RateLimited) as refused:
        await entered(limiter)
    assert (refused.value.type, refused.value.retry_after_seconds) == ("tokens", pytest.approx(60))
    # What takes no tokens is not held up by them.
    await limiter.account(ANNE, MEMORY).enter(spends_tokens=False)
    await (await entered(limiter, BEN)).spend_prompt(100)
    clock.now += 60
    await (await entered(limiter)).spend_prompt(100)


async def test_a_prompt_waits_for_its_tokens_and_one_beyond_the_limit_is_told_that_it_never_passes(
    clock: Clock,
) -> None:
    limiter = limiter_of(clock, tokens_per_minute=100, images_per_minute=2)
    account = await entered(limiter)
    await account.spend_prompt(60)
    with pytest.raises(RateLimited, match=r"100 in a minute, 60 are used, and this request has 41\.") as refused:
        await account.spend_prompt(41)
    assert refused.value.type == "tokens"
    # The refused one took nothing.
    await account.spend_prompt(40)
    for spend, count in ((account.spend_prompt, 101), (account.spend_images, 3)):
        with pytest.raises(InvalidRequest, match="can never pass") as never:
            await spend(count)
        assert (never.value.status, never.value.code) == (400, "request_exceeds_rate_limit")
    await account.spend_images(2)
    with pytest.raises(RateLimited, match="for images") as images:
        await account.spend_images(1)
    assert images.value.type == "requests"
    await account.spend_images(0)


async def test_no_images_at_all_may_be_a_limit(clock: Clock) -> None:
    account = await entered(limiter_of(clock, images_per_minute=0))
    await account.spend_images(0)
    with pytest.raises(InvalidRequest, match="can never pass"):
        await account.spend_images(1)


async def test_places_at_once_are_given_back_once_and_leave_no_trace(clock: Clock) -> None:
    limiter = limiter_of(clock, max_requests_at_once=2)
    held = [await entered(limiter) for _ in range(2)]
    with pytest.raises(RateLimited) as refused:
        await entered(limiter)
    assert (refused.value.code, refused.value.retry_after_seconds) == ("too_many_requests_at_once", 1)
    await entered(limiter, BEN)
    held[0].leave()
    held[0].leave()
    await entered(limiter)
    with pytest.raises(RateLimited):
        await entered(limiter)
    for caller in range(10_000):
        (await entered(limiter, f"192.0.2.{caller}")).leave()
    assert set(limiter.at_once) == {ANNE, BEN}


async def test_without_limits_nothing_is_counted_and_nothing_is_said(clock: Clock) -> None:
    limiter = limiter_of(clock)
    account = await entered(limiter)
    await account.spend_images(10**9)
    await account.spend_prompt(10**9)
    account.owe(10**9)
    await account.settle()
    assert account.headers() == {}


async def test_who_comes_again_when_told_to_is_answered(clock: Clock) -> None:
    """Whatever was spent before: a refusal's time is the truth, and never more than a minute."""
    random = Random("come again")
    limiter = limiter_of(clock, requests_per_minute=5, tokens_per_minute=1000)
    waits: list[float] = []
    for _ in range(2000):
        try:
            account = await entered(limiter)
        except RateLimited as refused:
            waits.append(refused.retry_after_seconds or 0)
            clock.now += waits[-1]
            account = await entered(limiter)
        account.owe(random.randrange(800))
        await account.settle()
        clock.now += random.expovariate(1 / 5)
    assert len(waits) > 100
    assert 0 < min(waits) <= max(waits) <= 60


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (-5, "0s"),
        (0.1195, "120ms"),
        (1, "1s"),
        (1.2, "1.2s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m1.5s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    assert duration(seconds) == written
