"""What a model runner computes in a way of its own, asked of a running server: each in one request or two.

On a GPU vLLM has another runner, with another sampler, other penalties and another grammar mask than on a CPU. The
model's weights are random, so the checks look at forms and counts, and at what a request forces.
"""

import base64
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from benchmarks.images import Images
from benchmarks.shapes import VOCABULARY
from benchmarks.workloads import MODEL

Json = dict[str, Any]
FORCED = 5_000
"""A token whose text is known."""
COLOURS = ["red", "green"]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}},
    "required": ["colour"],
    "additionalProperties": False,
}


class Wrong(Exception):
    """The answer is not what was asked for; the message says in what."""


class Answers:
    def __init__(self, port: int, end: float) -> None:
        self.port = port
        self.end = end
        """On the monotonic clock: nothing is waited for longer."""
        jpeg = Images((336, 336), seed=7).jpeg(0)
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        self.image = {"type": "image_url", "image_url": {"url": url}}

    def post(self, path: str, body: Json) -> Json:
        data = json.dumps({"model": MODEL, "temperature": 0} | body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=max(1, min(60, self.end - time.monotonic()))) as reply:
                found: Json = json.load(reply)
                return found
        except urllib.error.HTTPError as error:
            raise Wrong(f"{error.code}: {error.read().decode()[:200]}") from error

    def chat(self, *parts: Json, max_tokens: int = 8, **more: Any) -> Json:
        content = [*parts, {"type": "text", "text": "What is in this image?"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "ignore_eos": True}
        return self.post("/v1/chat/completions", body | more)

    def text(self) -> None:
        expect(self.chat()["usage"]["completion_tokens"], 8)

    def one_image(self) -> None:
        expect(self.chat(self.image)["usage"]["prompt_tokens"] > 576, True)

    def two_images(self) -> None:
        expect(self.chat(self.image, self.image)["usage"]["prompt_tokens"] > 2 * 576, True)

    def forced_token(self) -> None:
        """logit_bias"""
        answer = words(self.chat(max_tokens=3, logit_bias={str(FORCED): 100}))
        expect(answer.replace("<0x20>", " ").split(), [f"w{FORCED}"] * 3)

    def forbidden_tokens(self) -> None:
        """logit_bias of many tokens"""
        expect(self.chat(logit_bias={str(number): -1 for number in range(300)})["usage"]["completion_tokens"], 8)

    def json_schema(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
        answer = json.loads(words(self.chat(self.image, max_tokens=64, ignore_eos=False, response_format=form)))
        expect(answer["colour"] in COLOURS, True)

    def logprobs(self) -> None:
        tokens = self.chat(logprobs=True, top_logprobs=5)["choices"][0]["logprobs"]["content"]
        expect([len(token["top_logprobs"]) for token in tokens], [5] * 8)
        expect(all(-math.log(VOCABULARY) * 3 < token["logprob"] <= 0 for token in tokens), True)

    def prompt_logprobs(self) -> None:
        body = {"prompt": "one two three", "max_tokens": 1, "echo": True, "logprobs": 1, "ignore_eos": True}
        table = self.post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        expect(len(table) > 3 and all(value is not None and value <= 0 for value in table[1:]), True)

    def min_tokens(self) -> None:
        # The end token would be the answer at once, if it were allowed.
        answer = self.chat(max_tokens=20, min_tokens=12, ignore_eos=False, logit_bias={"2": 100})
        expect(answer["usage"]["completion_tokens"] in (12, 13), True)

    def seeded_sampling(self) -> None:
        fields = {"temperature": 1, "top_p": 0.9, "top_k": 50, "min_p": 0.001, "frequency_penalty": 0.5}
        first, second = (words(self.chat(seed=11, repetition_penalty=1.1, **fields)) for _ in range(2))
        expect(first, second)

    def largest_seed(self) -> None:
        """Two answers with it; a seed that did not fit would end the engine."""
        expect(len(self.chat(temperature=1, seed=2**63 - 1, n=2)["choices"]), 2)
        self.text()

    def check(self) -> dict[str, str]:
        """What was checked -> ok, or what was wrong."""
        checks: list[Callable[[], None]] = [
            self.text,
            self.one_image,
            self.two_images,
            self.forced_token,
            self.forbidden_tokens,
            self.json_schema,
            self.logprobs,
            self.prompt_logprobs,
            self.min_tokens,
            self.seeded_sampling,
            self.largest_seed,
        ]
        return {check.__name__: verdict(check) for check in checks}


def words(answer: Json) -> str:
    return str(answer["choices"][0]["message"]["content"])


def expect(found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{found!r} instead of {expected!r}"[:200])


def verdict(check: Callable[[], None]) -> str:
    try:
        check()
    except (Wrong, OSError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "ok"
