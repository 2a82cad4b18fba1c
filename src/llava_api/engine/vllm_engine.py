"""The AsyncLLM adapter: the only module that imports vllm, and it keeps what it touches narrow.

Requests go in rendered (``EngineInput``), so neither vLLM's templates nor a HF processor runs. Never imports
``vllm.entrypoints``, which moves with every release.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from llava_api.engine.base import Adapter, Delta, EngineImage, FinishReason, GenerationRequest, ModelToLoad
from llava_api.engine.vllm_options import engine_arguments, known_arguments
from llava_api.errors import EngineFailed, StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

DEAD = "The engine has stopped; the server must be restarted."
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine:
    """vLLM behind the ``Engine`` protocol; its EngineCore runs in a process of its own."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        self.max_model_len: int = llm.model_config.max_model_len

    @classmethod
    def start(cls, settings: Settings, model: ModelToLoad, *, on_cpu: bool) -> "VllmEngine":
        """Load the model; blocks until it is ready. Raises StartupError with vLLM's reason."""
        arguments = engine_arguments(settings, model, on_cpu=on_cpu, known=known_arguments(AsyncEngineArgs))
        try:
            return cls(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            log.debug("the engine did not start", exc_info=True)
            raise StartupError(f"the engine could not load the checkpoint: {reason(error)}") from error

    async def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        for adapter in adapters:
            try:
                await self.llm.add_lora(lora_request(adapter))
            except Exception as error:  # vLLM raises a plain Exception with the worker's words.
                log.debug("the adapter was not loaded", exc_info=True)
                raise StartupError(f"the engine could not load --lora {adapter.name}: {reason(error)}") from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        outputs = self.llm.generate(
            engine_input(request),
            sampling_params(request),
            request.request_id,
            lora_request=lora_request(request.adapter),
        )
        try:
            async for output in outputs:
                completion = output.outputs[0]
                yield Delta(
                    text=completion.text,
                    completion_tokens=len(completion.token_ids),
                    cached_tokens=output.num_cached_tokens or 0,
                    finish_reason=finish_reason(completion.finish_reason),
                )
        except EngineDeadError as error:
            raise EngineFailed(DEAD) from error
        except (EngineGenerateError, ValueError) as error:
            log.exception("the engine refused request %s", request.request_id)
            raise EngineFailed("The engine could not answer this request.") from error
        finally:
            # Closing vLLM's generator is what aborts the request inside the engine.
            await outputs.aclose()

    async def check_health(self) -> None:
        try:
            await self.llm.check_health()
        except EngineDeadError as error:
            raise EngineFailed(DEAD) from error

    def unfinished_requests(self) -> int:
        return int(self.llm.output_processor.get_num_unfinished_requests())

    async def shutdown(self) -> None:
        self.llm.shutdown()


def reason(error: Exception) -> str:
    """An error of vLLM's in its own words; of pydantic's only the sentences."""
    if isinstance(error, ValidationError):
        return "; ".join(details["msg"].removeprefix("Value error, ") for details in error.errors(include_url=False))
    return str(error)


def finish_reason(reason: str | None) -> FinishReason | None:
    """vLLM's reason as OpenAI's; an abort or an error inside the engine becomes EngineFailed."""
    if reason is None:
        return None
    known = FINISH_REASONS.get(reason)
    if known is None:
        raise EngineFailed("The engine broke off this answer.")
    return known


def engine_input(request: GenerationRequest) -> EngineInput:
    if not request.images:
        return tokens_input(request.token_ids)
    return mm_input(
        request.token_ids,
        MultiModalKwargsItems({"image": [image_item(image) for image in request.images]}),
        {"image": [image.cache_key for image in request.images]},
        {"image": [PlaceholderRange(offset=image.offset, length=image.length) for image in request.images]},
    )


def lora_request(adapter: Adapter | None) -> LoRARequest | None:
    return None if adapter is None else LoRARequest(adapter.name, adapter.number, adapter.path)


def image_item(image: EngineImage) -> MultiModalKwargsItem:
    pixels = torch.from_numpy(image.pixels)
    if image.size is not None and pixels.ndim == 3:
        # A 1.6 model takes a list of tiles, be it one.
        pixels = pixels[None]
    elements = {"pixel_values": MultiModalFieldElem(data=pixels, field=MultiModalBatchedField())}
    if image.size is not None:
        width, height = image.size
        # The model reads it as Python numbers: on a GPU it would only be copied back.
        elements["image_sizes"] = MultiModalFieldElem(
            data=torch.tensor([height, width]), field=MultiModalBatchedField(keep_on_cpu=True)
        )
    return MultiModalKwargsItem(elements)


def sampling_params(request: GenerationRequest) -> SamplingParams:
    wanted = request.sampling
    arguments: dict[str, Any] = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "max_tokens": wanted.max_tokens,
        "stop": list(wanted.stop),
        "stop_token_ids": list(wanted.stop_token_ids),
        "seed": wanted.seed,
        "output_kind": RequestOutputKind.DELTA,
    }
    return SamplingParams(**arguments)
