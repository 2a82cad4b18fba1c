"""Engines that answer without a model: so that what stands in front of the engine can be measured and recorded."""

import asyncio
from collections.abc import AsyncGenerator

from benchmarks.servers import CONTEXT
from benchmarks.workloads import ANSWER_TOKENS
from llava_api.engine.base import Adapter, Delta, GenerationRequest


class ScriptedEngine:
    """Every answer at once, a token at a time, as an engine would that costs nothing."""

    def __init__(self, tokens: int = ANSWER_TOKENS) -> None:
        self.tokens = tokens
        self.max_model_len = CONTEXT
        self.max_num_seqs = 256
        self.requests: list[GenerationRequest] | None = None
        """What it was asked, where it is set to a list."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        if self.requests is not None:
            self.requests.append(request)
        tokens = min(self.tokens, request.max_tokens)
        for index in range(tokens):
            await asyncio.sleep(0)  # Real tokens come one by one, and other requests run in between.
            reason = "length" if index == tokens - 1 else None
            yield Delta(text=" word", completion_tokens=1, cached_tokens=0, finish_reason=reason)

    async def load_adapter(self, adapter: Adapter) -> None:
        pass

    async def remove_adapter(self, adapter: Adapter) -> None:
        pass

    async def check_health(self) -> None:
        pass

    def unfinished_requests(self) -> int:
        return 0

    def paused(self) -> bool:
        return False

    def kill(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass
