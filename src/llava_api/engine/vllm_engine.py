"""The AsyncLLM adapter: the only module that imports vllm, and it keeps what it touches narrow.

Requests go in rendered (``EngineInput``), so neither vLLM's templates nor a HF processor runs. Never imports
``vllm.entrypoints``, which moves with every release.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    MultiModalSharedField,
    PlaceholderRange,
)
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import logprobs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from llava_api.engine import fork_server
from llava_api.engine.base import (
    IMPOSSIBLE,
    Adapter,
    Delta,
    EngineImage,
    FinishReason,
    GenerationRequest,
    ModelToLoad,
    TokenLogprob,
)
from llava_api.engine.processes import any_paused, kill_all, with_descendants
from llava_api.engine.start_errors import engine_start
from llava_api.engine.vllm_options import engine_arguments, known_arguments
from llava_api.engine.vllm_plugin import bind_coordinator, calls
from llava_api.errors import EngineFailed, EngineStopped, StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

CONTEXT = UsageContext.OPENAI_API_SERVER
LARGEST_SEED = 2**63 - 1
DEAD = "The engine has stopped."
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def is_not_dead_engine(record: logging.LogRecord) -> bool:
    """False for vLLM's traceback of a dead engine, which the supervisor reports."""
    return record.exc_info is None or not isinstance(record.exc_info[1], EngineDeadError)


def leave_out_token_texts() -> bool:
    """Have vLLM not write each token of every table of log-probabilities: 4 us each, on the event loop.

    Replies have texts of our own. Returns False if this vLLM writes them in another way.
    """
    if not calls(logprobs.LogprobsProcessor, "convert_ids_list_to_tokens"):
        return False
    logprobs.convert_ids_list_to_tokens = lambda tokenizer, token_ids: [""] * len(token_ids)
    return True


class VllmEngine:
    """vLLM as an ``Engine``; EngineCore runs in a separate process."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        logging.getLogger(AsyncLLM.__module__).addFilter(is_not_dead_engine)
        leave_out_token_texts()
        self.max_model_len: int = llm.model_config.max_model_len
        copies: int = llm.vllm_config.parallel_config.data_parallel_size
        self.max_num_seqs: int = copies * llm.vllm_config.scheduler_config.max_num_seqs
        # None if the engine runs on other machines: Ray looks after its processes.
        manager = getattr(llm.engine_core.resources, "engine_manager", None)
        started = [process.pid for process in getattr(manager, "processes", [])]
        self.adapters: set[int] = set()
        """Numbers of the loaded adapters."""
        self.processes = with_descendants({*started, fork_server.process_id()} - {None})
        self.closed = threading.Event()

    @classmethod
    def start(cls, settings: Settings, model: ModelToLoad, *, on_cpu: bool) -> "VllmEngine":
        """Load the model; blocks until it is ready. Raises StartupError with vLLM's reason."""
        arguments = engine_arguments(settings, model, on_cpu=on_cpu, known=known_arguments(AsyncEngineArgs))
        if arguments.get("data_parallel_size", 1) > 1 and os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn":
            bind_coordinator()
        with engine_start() as start:
            try:
                # The context decides on vLLM's default batch sizes: those of "vllm serve".
                return cls(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=CONTEXT))
            except Exception as error:  # Many kinds, including assertions.
                log.debug("the engine did not start", exc_info=True)
                cause = start.cause(reason(error))
                raise StartupError(f"the engine could not load the checkpoint: {cause}") from error

    async def load_adapter(self, adapter: Adapter) -> None:
        try:
            await self.llm.add_lora(lora_request(adapter))
        except EngineDeadError as error:
            raise EngineStopped(DEAD) from error
        except Exception as error:  # vLLM raises a plain Exception with the worker's words.
            log.debug("the adapter was not loaded", exc_info=True)
            raise StartupError(f"the engine could not load it: {reason(error)}") from error
        self.adapters.add(adapter.number)

    async def remove_adapter(self, adapter: Adapter) -> None:
        self.adapters.discard(adapter.number)
        try:
            await self.llm.remove_lora(adapter.number)
        except EngineDeadError as error:
            raise EngineStopped(DEAD) from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        if request.adapter is not None and request.adapter.number not in self.adapters:
            # vLLM would load it from its folder in the midst of its work, and end if the folder is gone.
            raise EngineFailed("The adapter that this answer began with is no longer loaded: send the request again.")
        outputs = self.llm.generate(
            engine_input(request),
            sampling_params(request),
            request.request_id,
            lora_request=lora_request(request.adapter),
        )
        try:
            async for output in outputs:
                cached = output.num_cached_tokens or 0
                prompt: tuple[TokenLogprob | None, ...] = ()
                if output.prompt_logprobs:
                    prompt = await asyncio.to_thread(prompt_logprobs, request, output.prompt_logprobs, cached)
                for completion in output.outputs:
                    yield delta_of(completion, cached, prompt)
        except EngineDeadError as error:
            raise EngineStopped(DEAD) from error
        except EngineFailed:
            raise
        except Exception as error:  # vLLM refuses with many kinds of exceptions, which differ between versions.
            log.exception("the engine refused request %s", request.request_id)
            raise EngineFailed("The engine could not answer this request.") from error
        finally:
            # Closing vLLM's generator is what aborts the request inside the engine.
            await outputs.aclose()

    async def check_health(self) -> None:
        try:
            await self.llm.check_health()
        except EngineDeadError as error:
            raise EngineStopped(DEAD) from error

    def paused(self) -> bool:
        return any_paused(self.processes)

    def kill(self) -> None:
        kill_all(self.processes)

    async def shutdown(self) -> None:
        """Kill its processes: EngineCore would take its five seconds for an orderly end, and be killed after that."""
        self.kill()
        try:
            await asyncio.to_thread(self.llm.shutdown)
        finally:
            fork_server.stop()
            self.closed.set()


def reason(error: Exception) -> str:
    """The message of vLLM's error; for one of pydantic's only the sentences."""
    if isinstance(error, ValidationError):
        return "; ".join(details["msg"].removeprefix("Value error, ") for details in error.errors(include_url=False))
    return str(error)


def finish_reason(reason: str | None) -> FinishReason | None:
    """vLLM's reason as OpenAI's. Raises EngineFailed for an abort or an error inside the engine."""
    if reason is None:
        return None
    known = FINISH_REASONS.get(reason)
    if known is None:
        raise EngineFailed("The engine broke off this answer.")
    return known


def delta_of(completion: CompletionOutput, cached_tokens: int, prompt: tuple[TokenLogprob | None, ...]) -> Delta:
    return Delta(
        text=completion.text,
        completion_tokens=len(completion.token_ids),
        cached_tokens=cached_tokens,
        finish_reason=finish_reason(completion.finish_reason),
        index=completion.index,
        logprobs=tuple(known for known in token_logprobs(completion.token_ids, completion.logprobs) if known),
        prompt_logprobs=prompt,
        stop_text=completion.stop_reason if isinstance(completion.stop_reason, str) else None,
        token_ids=tuple(completion.token_ids),
    )


def engine_input(request: GenerationRequest) -> EngineInput:
    if not request.images:
        return tokens_input(request.token_ids, cache_salt=request.cache_salt)
    return mm_input(
        request.token_ids,
        MultiModalKwargsItems({"image": [image_item(image, request.adapter) for image in request.images]}),
        {"image": [image_key(image, request.adapter) for image in request.images]},
        {"image": [PlaceholderRange(offset=image.offset, length=image.length) for image in request.images]},
        cache_salt=request.cache_salt,
    )


def lora_request(adapter: Adapter | None) -> LoRARequest | None:
    return None if adapter is None else LoRARequest(adapter.engine_name or adapter.name, adapter.number, adapter.path)


def image_key(image: EngineImage, adapter: Adapter | None) -> str:
    """What its features are cached by."""
    if adapter is None or not adapter.projector:
        return image.cache_key
    return f"{image.cache_key} {adapter.engine_name or adapter.name}"


def image_item(image: EngineImage, adapter: Adapter | None) -> MultiModalKwargsItem:
    pixels = torch.from_numpy(image.pixels)
    if image.size is not None and pixels.ndim == 3:
        # A model with grids takes a list of tiles, even for one tile.
        pixels = pixels[None]
    elements = {"pixel_values": MultiModalFieldElem(data=pixels, field=MultiModalBatchedField())}
    if image.size is not None:
        width, height = image.size
        # The model reads it as Python numbers: on a GPU it would only be copied back.
        elements["image_sizes"] = MultiModalFieldElem(
            data=torch.tensor([height, width]), field=MultiModalBatchedField(keep_on_cpu=True)
        )
    if adapter is not None and adapter.projector:
        # vLLM computes images together only if they share it.
        elements["adapter"] = MultiModalFieldElem(
            data=torch.tensor(adapter.number), field=MultiModalSharedField(batch_size=1, keep_on_cpu=True)
        )
    return MultiModalKwargsItem(elements)


def sampling_params(request: GenerationRequest) -> SamplingParams:
    wanted = request.sampling
    # vLLM has the fields of ``Sampling`` under the same names, and these in types of its own.
    arguments: dict[str, Any] = {
        **asdict(wanted),
        "stop": list(wanted.stop),
        "stop_token_ids": list(wanted.stop_token_ids),
        "logit_bias": dict(wanted.logit_bias) or None,
    }
    if wanted.seed is not None:
        # The last answer's seed, seed + n - 1, must fit into 64 bits: on a GPU a larger one ends the engine.
        arguments["seed"] = min(wanted.seed, LARGEST_SEED - request.choices + 1)
    tail = arguments.pop("scored_tail")
    if tail is not None:
        # What vLLM returns for cached tokens is undefined, so it must not look up what they are.
        arguments |= {"prompt_logprobs": 0, "skip_reading_prefix_cache": False, "detokenize": False}
    grammar = arguments.pop("grammar")
    if grammar is not None:
        arguments["structured_outputs"] = StructuredOutputsParams(grammar=grammar)
    return SamplingParams(
        n=request.choices, max_tokens=request.max_tokens, output_kind=RequestOutputKind.DELTA, **arguments
    )


def prompt_logprobs(
    request: GenerationRequest, tables: Sequence[Mapping[int, Logprob] | None], cached_tokens: int
) -> tuple[TokenLogprob | None, ...]:
    """For the prompt's tokens without those of images, or for the last ones if only they were asked for."""
    tail = request.sampling.scored_tail
    if tail is not None:
        # The model says how likely a token is where it computes the token before it.
        computed = tail < len(request.token_ids) - cached_tokens
        return token_logprobs(request.token_ids[-tail:], tables[-tail:]) if computed else ()
    texts = list(tables)
    for image in request.images:
        texts[image.offset : image.offset + image.length] = [None] * image.length
    return token_logprobs(request.token_ids, texts)


def token_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Logprob] | None] | None
) -> tuple[TokenLogprob | None, ...]:
    """From vLLM's tables, one for each token. None for a token about which nothing is known."""
    if not logprobs:
        return ()
    return tuple(
        None if table is None else token_logprob(token, table)
        for token, table in zip(token_ids, logprobs, strict=False)
    )


def token_logprob(token: int, table: Mapping[int, Logprob]) -> TokenLogprob:
    likeliest = sorted(table.items(), key=lambda entry: entry[1].rank or 0)
    top = tuple((other, finite(entry.logprob)) for other, entry in likeliest)
    return TokenLogprob(token, finite(table[token].logprob), top, table[token].rank or 1)


def finite(logprob: float) -> float:
    # Adding 0.0 turns -0.0 into 0.0.
    return max(logprob, IMPOSSIBLE) + 0.0
