"""The account that a request's work is charged to."""

from dataclasses import dataclass

from llava_api.limits.memory import Holding
from llava_api.limits.rate import Allowance


@dataclass(frozen=True, slots=True)
class Account:
    """A caller with the memory and the rate limits of one request. Without them nothing is counted or refused."""

    caller: str = ""
    memory: Holding | None = None
    allowance: Allowance | None = None

    @property
    def weight(self) -> float:
        """The caller's share of the engine, relative to other callers."""
        return 1.0 if self.allowance is None else self.allowance.limits.weight

    @property
    def max_tokens(self) -> int | None:
        """The longest answer that the caller may ask for; None for no limit."""
        return None if self.allowance is None else self.allowance.limits.max_tokens_per_request

    def take(self, size: int) -> None:
        """Count ``size`` more bytes. Any thread may call this. Raises Busy if the budget has no room."""
        if self.memory is not None:
            self.memory.take(size)

    def keep(self, size: int) -> None:
        """Count ``size`` bytes from now on, and no others. Raises Busy if that is more than before and has no room."""
        if self.memory is not None:
            self.memory.keep(size)

    def check(self, size: int) -> None:
        """Check that ``size`` more bytes would fit, without counting them. Raises Busy."""
        if self.memory is not None:
            self.memory.check(size)

    def release(self) -> None:
        """Count no more memory, for good."""
        if self.memory is not None:
            self.memory.release()

    async def spend_images(self, count: int) -> None:
        """Raises RateLimited, and InvalidRequest if ``count`` exceeds a whole minute's limit."""
        if self.allowance is not None:
            await self.allowance.spend_images(count)

    async def spend_prompt(self, tokens: int) -> None:
        """Raises RateLimited, and InvalidRequest if ``tokens`` exceeds a whole minute's limit."""
        if self.allowance is not None:
            await self.allowance.spend_prompt(tokens)

    def owe(self, tokens: int) -> None:
        """Note tokens of an answer; they are counted when the request ends."""
        if self.allowance is not None:
            self.allowance.owe(tokens)
