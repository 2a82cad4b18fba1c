"""An engine that says what a test wants it to say, for tests of everything in front of the engine."""

import asyncio
from collections.abc import AsyncGenerator
from itertools import chain

from llava_api.engine.base import Adapter, Delta, FinishReason, GenerationRequest, TokenLogprob
from llava_api.errors import EngineFailed, EngineStopped, StartupError


class ScriptedEngine:
    def __init__(self, texts: tuple[str, ...] = (" A red", " circle", "."), max_model_len: int = 2048) -> None:
        self.texts = texts
        self.max_model_len = max_model_len
        self.max_num_seqs = 8
        self.pause_seconds = 0.0
        self.fail_at: int | None = None
        """The delta before which generation fails."""
        self.finish_reason: FinishReason = "stop"
        self.stop_text: str | None = None
        self.logprobs: list[tuple[TokenLogprob, ...]] = [()] * len(texts)
        """Log-probabilities of the tokens of each text."""
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        self.letters: dict[int, float] = {}
        """Log-probabilities of tokens whose prompt is scored; -1 for the others."""
        self.cached_tail = False
        """Whether the prefix cache has the end of a prompt, too."""
        self.other_choices: dict[int, tuple[str, ...]] = {}
        """Texts of the choices that do not say ``texts``, as many as those."""
        self.adapters: list[Adapter] = []
        """Those that were loaded and not removed."""
        self.refused_adapters: set[str] = set()
        self.adapter_gate = asyncio.Event()
        """While it is not set, adapters are being loaded."""
        self.adapter_gate.set()
        self.dead = False
        self.stopped = False
        self.requests: list[GenerationRequest] = []
        self.unfinished = 0
        self.abort_turns = 0
        """Turns of the event loop that it takes to abort a request. A cancelled abort does not count as one."""
        self.deltas = 0
        """Number of deltas so far, of all requests."""

    def say(self, *texts: str) -> None:
        """Each text is one delta of one token, without log-probabilities."""
        self.texts = texts
        self.logprobs = [()] * len(texts)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        if self.dead:
            raise EngineStopped("The engine has stopped.")
        if request.sampling.scored_tail is not None or request.request_id.partition("-choice-")[1]:
            yield self.scored(request)
            return
        self.unfinished += 1
        try:
            for index, text in enumerate(self.texts):
                if self.fail_at == index:
                    raise EngineFailed("The engine could not answer this request.")
                await asyncio.sleep(self.pause_seconds)
                if self.dead:
                    raise EngineStopped("The engine has stopped.")
                reason = self.finish_reason if index == len(self.texts) - 1 else None
                logprobs = self.logprobs[index] if request.sampling.logprobs is not None else ()
                for choice in range(request.choices):
                    said = self.other_choices[choice][index] if choice in self.other_choices else text
                    self.deltas += 1
                    prompt = self.prompt_logprobs if not index else ()
                    stop_text = self.stop_text if reason is not None else None
                    ids = tuple(known.token_id for known in chain(*self.logprobs[index : index + 1]))
                    yield Delta(said, 1, 3, reason, choice, logprobs, prompt, stop_text, ids)
        except BaseException:
            for _ in range(self.abort_turns):
                await asyncio.sleep(0)
            self.unfinished -= 1
            raise
        self.unfinished -= 1

    def scored(self, request: GenerationRequest) -> Delta:
        tail = request.sampling.scored_tail
        ids = request.token_ids if tail is None else request.token_ids[-tail:]
        known = tuple(TokenLogprob(token, self.letters.get(token, -1.0), ()) for token in ids)
        return Delta("", 1, 0, "length", prompt_logprobs=() if tail and self.cached_tail else known)

    async def load_adapter(self, adapter: Adapter) -> None:
        await self.adapter_gate.wait()
        if self.dead:
            raise EngineStopped("The engine has stopped.")
        if adapter.name in self.refused_adapters:
            raise StartupError("the engine could not load it: no")
        self.adapters.append(adapter)

    async def remove_adapter(self, adapter: Adapter) -> None:
        self.adapters.remove(adapter)

    async def check_health(self) -> None:
        if self.dead:
            raise EngineStopped("The engine has stopped.")

    def unfinished_requests(self) -> int:
        return self.unfinished

    def paused(self) -> bool:
        return self.stopped

    def kill(self) -> None:
        """What is running then raises EngineStopped at its next text."""
        self.dead = True

    async def shutdown(self) -> None:
        self.dead = True
