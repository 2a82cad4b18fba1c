"""The door to the engine: its Protocol and the types that cross it. Imports neither vllm nor torch."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llava_api.vision.families import VisionFamily
from llava_api.vision.geometry import PatchMerge, Pinpoints, Size
from llava_api.vision.normalisation import Normalisation, Pixels

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ModelToLoad:
    """A checkpoint in the hub's format, and how its model is to treat pictures."""

    path: str
    """A folder or a hub id."""
    family: VisionFamily
    normalisation: Normalisation
    """Of the levels of a picture, inside the model."""
    stored_dtype: str | None = None
    """Type of its weights, where its config tells."""
    pinpoints: Pinpoints = ()
    """As (height, width), the order in which the model reads them; empty for a family without grids."""
    merge: PatchMerge | None = None
    """How the model makes one row of its tiles' features; None for a family without grids."""
    quantization: str | None = None
    """vLLM's name of a quantization method; None for what the checkpoint says."""
    adapters: tuple["Adapter", ...] = ()
    name: str | None = None
    """Under which it is served; stands in the engine's metrics. None for its path."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is served beside the model."""

    name: str
    path: str
    number: int
    """Its number in the engine, from 1."""
    rank: int


@dataclass(frozen=True, slots=True)
class EngineImage:
    """One picture, as the model takes it."""

    pixels: Pixels
    """(3, S, S) for one tile, (1 + tiles, 3, S, S) for a grid."""
    offset: int
    """Index of its first image token in the prompt."""
    length: int
    """Number of its image tokens: the features that the model makes of it."""
    cache_key: str
    """Equal keys mean equal pixels, to the encoder cache and to prefix caching."""
    size: Size | None
    """(width, height) from which the model chooses its grid; None for a family without grids."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and what ends an answer, in vLLM's names."""

    temperature: float
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """So many of the likeliest tokens at each place, besides the chosen one; None for no log-probabilities."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    grammar: str | None = None
    """llguidance's Lark grammar that the answer must fit; checked by ``grammar_check`` before it comes here."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    request_id: str
    token_ids: list[int]
    images: tuple[EngineImage, ...]
    """In prompt order."""
    sampling: Sampling
    max_tokens: int
    """Of one answer."""
    adapter: Adapter | None = None
    choices: int = 1
    """Answers; more than one only with a temperature above 0."""
    cache_salt: str | None = None
    """What was computed for a prompt is used again for prompts of the same salt alone; None shares it with all."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token was, before temperature and penalties."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the last one. The last of each choice has a finish reason."""

    text: str
    completion_tokens: int
    """Tokens in this delta."""
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    finish_reason: FinishReason | None
    index: int = 0
    """Of the choice, from 0."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens in this delta, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the prompt's tokens, in the first delta, where they were asked for; nothing is known of the first one."""


class Engine(Protocol):
    """A model that generates. Closing a stream early aborts its request."""

    max_model_len: int
    max_num_seqs: int
    """Answers that it makes at once; more wait inside it, first come first served."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Raises EngineStopped where the engine is gone, and EngineFailed where it refuses the request."""
        ...

    async def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Load LoRA adapters before the first request asks for one. Raises StartupError."""
        ...

    async def check_health(self) -> None:
        """Raises EngineStopped where the engine is gone."""
        ...

    def unfinished_requests(self) -> int:
        """Requests that the engine still works on."""
        ...

    async def shutdown(self) -> None: ...


class EngineProcesses(Engine, Protocol):
    """An engine that lives in processes of its own, as its supervisor sees it."""

    def paused(self) -> bool:
        """Whether one of its processes has been stopped (SIGSTOP): it is there, and does nothing."""
        ...

    def kill(self) -> None:
        """End its processes at once, whatever state they are in; all its streams raise EngineStopped then."""
        ...
