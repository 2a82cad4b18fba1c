"""The account that a request's work is charged to."""

import sys
from dataclasses import dataclass, field

from llava_api.limits.memory import Holding, MemoryBudget
from llava_api.limits.rate import Allowance


@dataclass(frozen=True, slots=True)
class Account:
    """A caller with the memory and the rate limits of one request. By default nothing is limited."""

    caller: str = ""
    memory: Holding = field(default_factory=lambda: MemoryBudget(sys.maxsize).hold(""))
    allowance: Allowance | None = None

    @property
    def weight(self) -> float:
        """The caller's share of the engine, relative to other callers."""
        return 1.0 if self.allowance is None else self.allowance.limits.weight

    @property
    def max_tokens(self) -> int | None:
        """The longest answer that the caller may ask for; None for no limit."""
        return None if self.allowance is None else self.allowance.limits.max_tokens_per_request

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
