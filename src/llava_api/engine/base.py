"""The door to the engine: its Protocol and the types that cross it. Imports neither vllm nor torch."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class EngineImage:
    """One picture, as the model takes it."""

    pixels: NDArray[np.float32]
    """(3, S, S) for LLaVA-1.5, (1 + tiles, 3, S, S) for LLaVA-1.6."""
    offset: int
    """Index of its first image token in the prompt."""
    length: int
    """Number of its image tokens: the features that the model makes of it."""
    cache_key: str
    """Equal keys mean equal pixels, to the encoder cache and to prefix caching."""
    size: tuple[int, int] | None
    """(width, height) from which a 1.6 model chooses its grid; None for 1.5."""


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    request_id: str
    token_ids: list[int]
    images: tuple[EngineImage, ...]
    """In prompt order."""
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the last one. The last has a finish reason."""

    text: str
    completion_tokens: int
    """Tokens in this delta."""
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    finish_reason: FinishReason | None


class Engine(Protocol):
    """A model that generates. Closing a stream early aborts its request."""

    max_model_len: int

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Raises EngineFailed where the engine is dead or refuses the request."""
        ...

    async def check_health(self) -> None:
        """Raises EngineFailed where the engine is dead."""
        ...

    def unfinished_requests(self) -> int:
        """Requests that the engine still works on."""
        ...

    async def shutdown(self) -> None: ...
