"""vLLM's engine inside the test's own process: it starts in two seconds, and gives the log-probability of each token.

The server's engine works in processes of its own. Theirs is the same model code, loaded from the same arguments.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import torch
from PIL import Image

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Adapter, EngineImage, GenerationRequest, Sampling
from llava_api.engine.vllm_options import engine_arguments, known_arguments, prepare_environment, prepare_start
from llava_api.engine.vllm_plugin import keep_adapters_on_cpu, load_despite_stale_index
from llava_api.engine.vllm_projectors import load_projectors
from llava_api.images.decode import Decoded
from llava_api.images.mode import Detail
from llava_api.images.pixels import render_pixels
from llava_api.prompts.render import tokenize
from llava_api.prompts.segments import Turn
from llava_api.settings import Settings

REPLACED = ((torch, "set_num_threads"), (torch.accelerator, "synchronize"), (torch.accelerator, "empty_cache"))
"""What vLLM's CPU worker puts something of its own in place of, for as long as the process lives."""


@dataclass(frozen=True, slots=True)
class Answer:
    token_ids: list[int]
    text: str
    logprobs: list[dict[int, float]]
    """For each token of the answer: the log-probabilities of the likeliest tokens, by id."""


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables for a while; also undoes what others set meanwhile, as vLLM does while it starts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def no_collecting() -> Iterator[None]:
    """vLLM collects garbage seven times between start and end: half of the time that a small model takes."""
    with patch.object(gc, "collect", lambda *_: 0):
        yield


@cache
def load_as_the_servers_engine_does() -> None:
    """The plugin changes vLLM only in the processes of the server's engine."""
    from llava_api.engine.vllm_int4 import use_faster_kernels
    from llava_api.engine.vllm_int8 import use_faster_kernel

    load_despite_stale_index()
    load_projectors()
    keep_adapters_on_cpu()
    use_faster_kernels()
    use_faster_kernel()


class SmallEngine:
    """A loaded model. One at a time in a process: torch.distributed takes no second one."""

    def __init__(self, model: ServedModel, settings: Settings) -> None:
        self.features: list[int] = []
        """How many features the model made of each image so far. vLLM itself does not complain if they are too
        many: it takes the first of them."""
        self.broken = False
        self.replaced = [getattr(place, name) for place, name in REPLACED]
        with no_collecting(), environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
            prepare_environment(settings, on_cpu=True)
            prepare_start(settings, on_cpu=True)
            # Here and not above, because vLLM reads its variables while it is imported.
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            load_as_the_servers_engine_does()
            known = known_arguments(EngineArgs)
            arguments = engine_arguments(settings, model.to_load(), on_cpu=True, known=known)
            # vLLM keeps the series of one engine in a process: those of the session's engine are looked at.
            arguments["disable_log_stats"] = True
            # Room for 8192 tokens. By itself vLLM writes zeros over the GiB of --cpu-kvcache-space.
            arguments["num_gpu_blocks_override"] = 256
            self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.count_features(self.engine.model_executor.driver_worker.get_model())

    def count_features(self, loaded: Any) -> None:
        embed = loaded.embed_multimodal

        def counted(**images: Any) -> Any:
            made = embed(**images)
            self.features += [len(one) for one in made]
            return made

        loaded.embed_multimodal = counted

    def greedy(self, request: GenerationRequest, tokens: int, logprobs: int = 5) -> Answer:
        """The likeliest ``tokens`` tokens; an end token does not end them."""
        return self.greedy_together([request], tokens, logprobs)[0]

    def greedy_together(self, requests: Sequence[GenerationRequest], tokens: int, logprobs: int = 5) -> list[Answer]:
        """``greedy`` for several requests that are computed in one batch; answers in their order."""
        from vllm import SamplingParams

        from llava_api.engine.vllm_engine import engine_input, lora_request

        wanted = SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=logprobs, ignore_eos=True)
        for request in requests:
            adapter = lora_request(request.adapter)
            self.engine.add_request(request.request_id, engine_input(request), wanted, lora_request=adapter)
        last = self.last_outputs()
        return [answer_of(last[request.request_id]) for request in requests]

    def last_outputs(self) -> dict[str, Any]:
        """The last output of each request in the engine, by its id."""
        # A step that failed leaves its request in the engine, and waiting for that one would never end.
        assert not self.broken, "the engine failed in an earlier request"
        self.broken = True
        outputs: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            outputs |= {output.request_id: output for output in self.engine.step()}
        self.broken = False
        return outputs

    def close(self) -> None:
        """Give the memory back, end torch.distributed, and leave torch as other tests in this process expect it."""
        with no_collecting():
            self.engine.engine_core.shutdown()
        del self.engine
        gc.collect()
        for (place, name), before in zip(REPLACED, self.replaced, strict=True):
            setattr(place, name, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer_of(output: Any) -> Answer:
    made = output.outputs[0]
    likeliest = [{token: entry.logprob for token, entry in place.items()} for place in made.logprobs]
    return Answer(list(made.token_ids), made.text, likeliest)


def image_request(
    model: ServedModel, drawing: Image.Image, name: str, adapter: Adapter | None = None, detail: Detail = "auto"
) -> GenerationRequest:
    """A question about an RGB image, made as the server makes it. ``name`` is the image's key in caches."""
    mode = model.image_mode.at(detail)
    length = mode.tokens(drawing.size)
    turn = Turn("user", (0, "What is in this image?"))
    prompt = tokenize(model.family.layout(None, [turn]), model.tokenizer, model.checkpoint.image_token_id, [length])
    image = EngineImage(
        pixels=render_pixels(Decoded(drawing, drawing.size), mode),
        offset=prompt.placeholders[0].offset,
        length=length,
        cache_key=name,
        size=mode.engine_size(drawing.size),
    )
    return GenerationRequest(name, prompt.token_ids, (image,), Sampling(0.0), 1, adapter)
