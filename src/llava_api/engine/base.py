"""The engine's interface: its Protocol and the types of its arguments and results. Imports neither vllm nor torch."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from llava_api.engine.cpu_plan import CpuPlan
from llava_api.vision.families import VisionFamily
from llava_api.vision.geometry import PatchMerge, Pinpoints, Size
from llava_api.vision.normalisation import Normalisation, Pixels

FinishReason = Literal["stop", "length"]
IMPOSSIBLE = -9999.0
"""Log-probability of a token that cannot come, as in OpenAI's API: JSON has no infinity."""
LOGPROB_BYTES = 1000
"""Memory that one log-probability takes on its way from the engine into a reply."""


@dataclass(frozen=True, slots=True)
class ModelToLoad:
    """A checkpoint in the hub's format, and how its model treats images."""

    path: str
    """A folder or a hub id."""
    family: VisionFamily
    normalisation: Normalisation
    """How the model turns an image's levels into values."""
    stored_dtype: str | None = None
    """Type of its weights, if its config says so."""
    pinpoints: Pinpoints = ()
    """As (height, width), the order in which the model reads them; empty for a family without grids."""
    merge: PatchMerge | None = None
    """How the model makes one row of its tiles' features; None for a family without grids."""
    quantization: str | None = None
    """vLLM's name of a quantization method; None for what the checkpoint says."""
    cpu_plan: CpuPlan | None = None
    """Settings that suit this machine if it has no GPU."""
    max_loras: int = 0
    """LoRA adapters that it must hold at once; 0 for an engine without them."""
    max_lora_rank: int = 0
    name: str | None = None
    """The name it is served under, also in the engine's metrics. None for its path."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is served beside the model."""

    name: str
    path: str
    number: int
    """Its number in the engine, from 1."""
    rank: int
    engine_name: str = ""
    """What the engine knows it by, if not by ``name``: the prefix cache takes adapters of one name for the same."""
    projector: bool = False
    """Whether it brings a projector of its own, which changes what the model makes of an image."""


@dataclass(frozen=True, slots=True)
class EngineImage:
    """One image, as the model takes it."""

    pixels: Pixels
    """(3, S, S) for one tile, (1 + tiles, 3, S, S) for a grid."""
    offset: int
    """Index of its first image token in the prompt."""
    length: int
    """Number of its image tokens, which is the number of features that the model makes of it."""
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
    """Number of likeliest tokens to return for each position, besides the chosen one; None for no log-probabilities."""
    prompt_logprobs: int | None = None
    """``logprobs`` for the prompt's tokens."""
    scored_tail: int | None = None
    """Return the log-probabilities of this number of the prompt's last tokens only, so that the others may come from
    the prefix cache; none if one of these came from it, too."""
    grammar: str | None = None
    """llguidance's Lark grammar that the answer must fit; checked by ``grammar_check`` beforehand."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    request_id: str
    token_ids: list[int]
    images: tuple[EngineImage, ...]
    """In prompt order."""
    sampling: Sampling
    max_tokens: int
    """Limit for each answer."""
    adapter: Adapter | None = None
    choices: int = 1
    """Answers; more than one only with a temperature above 0."""
    cache_salt: str | None = None
    """The prefix cache is shared only by prompts with the same salt; None shares it with all."""

    @property
    def image_tokens(self) -> int:
        return sum(image.length for image in self.images)

    @property
    def held_bytes(self) -> int:
        """Memory for pixels and for the log-probabilities of the prompt."""
        wanted = self.sampling.prompt_logprobs
        entries = 0 if wanted is None else (len(self.token_ids) - self.image_tokens) * (wanted + 1)
        return sum(image.pixels.nbytes for image in self.images) + entries * LOGPROB_BYTES


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token was, before temperature and penalties."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest, the likeliest first."""
    rank: int = 1
    """The token's place among all tokens, the likeliest being 1."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the previous delta. The last delta of each choice has a finish reason."""

    text: str
    completion_tokens: int
    """Tokens in this delta."""
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    finish_reason: FinishReason | None
    index: int = 0
    """The choice's index."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """For the tokens in this delta, if requested."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """For the prompt's tokens, in the first delta, if requested; None for the first token and for those of images."""
    stop_text: str | None = None
    """The one of ``Sampling.stop`` that ended the choice."""
    token_ids: tuple[int, ...] = ()
    """The tokens in this delta, an end token included."""


class Engine(Protocol):
    """A model that generates. Closing a stream early aborts its request."""

    max_model_len: int
    max_num_seqs: int
    """Answers that it generates concurrently; more wait inside it, first come first served."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Raises EngineStopped if the engine has stopped, and EngineFailed if it refuses the request."""
        ...

    async def load_adapter(self, adapter: Adapter) -> None:
        """Load a LoRA adapter before a request asks for it.

        Raises StartupError if the engine does not take it, and EngineStopped if the engine has stopped.
        """
        ...

    async def remove_adapter(self, adapter: Adapter) -> None:
        """No request may ask for it any more. Raises EngineStopped."""
        ...

    async def check_health(self) -> None:
        """Raises EngineStopped if the engine has stopped."""
        ...

    async def shutdown(self) -> None: ...


class EngineProcesses(Engine, Protocol):
    """An engine that runs in separate processes, as its supervisor sees it."""

    def paused(self) -> bool:
        """Whether one of its processes is suspended (SIGSTOP)."""
        ...

    def kill(self) -> None:
        """End its processes at once, whatever state they are in. All its streams then raise EngineStopped."""
        ...
