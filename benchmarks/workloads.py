"""The workloads and their bars, and the requests they are made of, as bytes that are ready to be sent."""

import base64
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import orjson

from benchmarks.images import IMAGES, Images, Size

MODEL = "bench"
"""The name under which every server serves the checkpoint."""
ANSWER_TOKENS = 16
NUMBERS_A_ROUND = 4_000
"""Numbers of one round's images and texts; the next round's begin after them."""
QUESTION = "What is in this image?"
TEXT = (
    "after among apple autumn basket before bridge bright candle carry castle circle cloud colour copper corner "
    "count dance desert early eleven engine evening fallow field follow forest garden gentle glass green harbour "
    "hidden honest island jungle kettle ladder letter little marble meadow middle mirror morning narrow night "
    "number ocean orange paper people pepper planet pocket purple quiet ribbon river round saddle second shadow "
    "silver simple square stone summer table thunder tiger travel valley velvet violet water window winter yellow"
)
WORDS = TEXT.split()


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    title: str
    concurrency: int
    requests: int
    """Measured requests in a round."""
    size: Size | None = None
    """Of its images; None for text only."""
    distinct: int | None = None
    """This many images, repeated; None if all are different."""
    rate_bar: float = 1.0
    """Least requests/s, ours / peer."""
    ttft_bar: float = 1.0
    """Highest median time to the first token, ours / peer."""

    @property
    def warm_up(self) -> int:
        """Enough for every batch size to have been met: CPU kernels are made when a shape is first seen."""
        return self.concurrency * (10 if self.size is None else 4 if self.size[0] < 2_000 else 1)

    def shorter(self, share: float) -> "Workload":
        return replace(self, requests=max(self.concurrency * 2, round(self.requests * share)))


WORKLOADS = (
    Workload("text", "text", 16, 1600, rate_bar=1.05, ttft_bar=0.9),
    Workload("small", "336x336 JPEG, all different", 16, 640, (336, 336), rate_bar=1.4, ttft_bar=0.7),
    Workload("medium", "1024x768 JPEG, all different", 16, 400, (1024, 768), rate_bar=1.8, ttft_bar=0.5),
    Workload("large", "4000x3000 JPEG, all different", 8, 72, (4000, 3000), rate_bar=4.0, ttft_bar=0.25),
    Workload("repeated", "4000x3000 JPEG, two repeated", 8, 120, (4000, 3000), 2, rate_bar=4.0, ttft_bar=0.25),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True, slots=True)
class Material:
    """What one round sends, made before any clock starts; every server of the round gets the same."""

    warm_up: list[bytes]
    """JSON bodies."""
    measured: list[bytes]


@cache
def images_of(size: Size, seed: int) -> Images:
    return Images(size, seed)


def body(content: object, answer_tokens: int = ANSWER_TOKENS, **more: object) -> bytes:
    """A chat request that every OpenAI-compatible server takes, and ``more`` fields."""
    return orjson.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
    )


def text_body(number: int, seed: int, answer_tokens: int = ANSWER_TOKENS, **more: object) -> bytes:
    rng = np.random.default_rng([seed, number])
    words = " ".join(WORDS[int(index)] for index in rng.integers(0, len(WORDS), 12))
    return body(f"Text {number}: {words}?", answer_tokens, **more)


def image_body(jpeg: bytes, answer_tokens: int = ANSWER_TOKENS, **more: object) -> bytes:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
    return body(parts, answer_tokens, **more)


def make_material(workload: Workload, round_number: int, seed: int) -> Material:
    """Requests of one round: none of another round's images, and none of the warm-up's among the measured."""
    first = round_number * NUMBERS_A_ROUND
    numbers = range(first, first + workload.warm_up + workload.requests)
    if workload.size is None:
        bodies = [text_body(number, seed) for number in numbers]
    elif workload.distinct is None:
        bodies = [image_body(jpeg) for jpeg in images_of(workload.size, seed).jpegs(numbers)]
    else:
        last = range(IMAGES - workload.distinct, IMAGES)
        few = [image_body(jpeg) for jpeg in images_of(workload.size, seed).jpegs(last)]
        bodies = [few[index % len(few)] for index in range(len(numbers))]
    return Material(bodies[: workload.warm_up], bodies[workload.warm_up :])
