"""What callers are promised of answers, by the real engine: forms kept to, whole letters, tokens that add up."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
from PIL import Image

from llava_api.engine.base import GenerationRequest, Sampling
from llava_api.errors import EngineFailed
from tests.api.test_chat import image_message
from tests.api.test_structured_output import BAD, form, tool
from tests.engine.conftest import Running
from tests.support.openai_schemas import ValidatingTransport
from tests.support.questions import data_url
from tests.support.sse import chunks

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHAPE = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue", "größer", "\U0001f388"]},
        "name": {"type": "string", "maxLength": 8},
        "sides": {"type": "integer", "minimum": 0, "maximum": 99},
        "sizes": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["colour", "name", "sides", "sizes"],
    "additionalProperties": False,
}
LETTERS = "\U0001f388é日本\U0001f469\u200d\U0001f680 ok"
SEEDS = range(20)
HOT = {"temperature": 1.5, "max_tokens": 400}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    transport = ValidatingTransport(httpx.AsyncHTTPTransport())
    async with httpx.AsyncClient(base_url=running.base_url, transport=transport, timeout=120) as opened:
        yield opened


async def ask(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    body = {"model": "endless", "messages": [{"role": "user", "content": "Describe the image."}], **more}
    return await client.post("/chat/completions", json={"max_tokens": 40, **body})


async def choices(client: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    reply = await ask(client, **more)
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["choices"]
    return found


def content(choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"])


def written(logprobs: dict[str, Any]) -> bytes:
    return b"".join(bytes(token["bytes"]) for token in logprobs["content"])


async def test_several_answers_differ_and_a_seed_brings_them_back(client: httpx.AsyncClient) -> None:
    first = [content(choice) for choice in await choices(client, n=4, seed=5, temperature=1.5)]
    again = [content(choice) for choice in await choices(client, n=4, seed=5, temperature=1.5)]
    other = [content(choice) for choice in await choices(client, n=4, seed=6, temperature=1.5)]
    assert first == again
    assert first != other
    assert len(set(first)) > 1


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
async def test_the_ends_of_what_a_seed_may_be(client: httpx.AsyncClient, seed: int) -> None:
    assert len(await choices(client, n=2, seed=seed, temperature=1)) == 2


@pytest.mark.parametrize("temperature", [0, 1e-6, 0.005])
async def test_temperatures_near_nothing_take_several_answers(client: httpx.AsyncClient, temperature: float) -> None:
    first, second = await choices(client, n=2, temperature=temperature)
    assert content(first) == content(second)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"stop": ["zebra!"]},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 2, "seed": 2, "stop": ["zebra!"]},
        {"response_format": form({"const": LETTERS})},
    ],
    ids=str,
)
async def test_the_tokens_of_an_answer_make_its_text(client: httpx.AsyncClient, knobs: dict[str, Any]) -> None:
    (choice,) = await choices(client, logprobs=True, top_logprobs=3, max_tokens=25, **knobs)
    assert written(choice["logprobs"]).decode("utf-8", "replace") == content(choice)
    for token in choice["logprobs"]["content"]:
        # A grammar may leave fewer than three tokens, and no others are listed.
        assert len(token["top_logprobs"]) == 3 or "response_format" in knobs
        assert min(top["logprob"] for top in token["top_logprobs"]) > -9999
        assert token["logprob"] <= 0
        assert [top["logprob"] for top in token["top_logprobs"]] == sorted(
            (top["logprob"] for top in token["top_logprobs"]), reverse=True
        )
    reply = await ask(client, logprobs=True, stream=True, max_tokens=25, **knobs)
    streamed = [chunk["choices"][0] for chunk in chunks(reply.content)]
    text = "".join(piece["delta"].get("content", "") for piece in streamed)
    assert text == content(choice)
    said = b"".join(written(piece["logprobs"]) for piece in streamed if piece["logprobs"])
    assert said.decode("utf-8", "replace") == text


async def test_json_fits_its_schema_however_hot_it_is_sampled(client: httpx.AsyncClient) -> None:
    asked = [choices(client, seed=seed, response_format=form(SHAPE), **HOT) for seed in SEEDS]
    answers = [content(choice) for (choice,) in await asyncio.gather(*asked)]
    for answer in answers:
        jsonschema.validate(json.loads(answer), SHAPE)
    assert len(set(answers)) > 5


async def test_calls_fit_their_schemas_however_hot_they_are_sampled(client: httpx.AsyncClient) -> None:
    tools = [tool(SHAPE, "draw"), tool({**SHAPE, "required": ["sides"]}, "count")]
    fields = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, **HOT}
    asked = [choices(client, seed=seed, **fields) for seed in SEEDS]
    for (choice,) in await asyncio.gather(*asked):
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        schema = next(one["function"] for one in tools if one["function"]["name"] == call["function"]["name"])
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema["parameters"])


async def test_json_may_be_answered_where_calls_are_allowed(client: httpx.AsyncClient) -> None:
    fields = {"tools": [tool(SHAPE, "draw")], "response_format": form(SHAPE), **HOT}
    answers = await asyncio.gather(*(choices(client, seed=seed, **fields) for seed in SEEDS))
    for (choice,) in answers:
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(content(choice)), SHAPE)
    assert any(choice["finish_reason"] == "stop" for (choice,) in answers)


async def test_streamed_letters_are_whole(client: httpx.AsyncClient) -> None:
    reply = await ask(client, stream=True, logprobs=True, max_tokens=80, response_format=form({"const": LETTERS}))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(reply.content)]
    assert json.loads("".join(pieces)) == LETTERS
    assert not any("\ufffd" in piece for piece in pieces)


async def test_prompt_logprobs_of_an_echo(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        body = {"model": "endless", "prompt": "A red circle", "echo": True, "logprobs": 2, "max_tokens": 3}
        reply = await client.post("/completions", json={**body, "stream": stream})
        assert reply.status_code == 200, reply.text
        if stream:
            continue
        (choice,) = reply.json()["choices"]
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert all(entry is not None and entry <= 0 for entry in logprobs["token_logprobs"][1:])
        assert choice["text"].startswith("A red circle")


# Nobody is hurt by another's grammar


def with_grammar(request: GenerationRequest, name: str, grammar: str) -> GenerationRequest:
    return replace(request, request_id=name, sampling=Sampling(temperature=0, grammar=grammar))


async def test_a_grammar_that_the_engine_refuses_hurts_nobody_else(running: Running, client: httpx.AsyncClient) -> None:
    before = content((await choices(client, temperature=0))[0])
    prompt = running.model.tokenizer.encode(["Hello."])
    request = GenerationRequest("plain", prompt, (), Sampling(temperature=0), 20)
    bad = ["start: nowhere", "start: /(?=a)b/", f"start: %json {json.dumps(BAD['more optional fields than a row'])}"]
    others = [asyncio.create_task(choices(client, temperature=0)) for _ in range(3)]
    for number, grammar in enumerate(bad):
        with pytest.raises(EngineFailed):
            async for _ in running.engine.generate(with_grammar(request, f"bad {number}", grammar)):
                pass
    for (choice,) in await asyncio.gather(*others):
        assert content(choice) == before
    assert content((await choices(client, temperature=0))[0]) == before


COSTLY = {
    "a multiple": {"type": "integer", "multipleOf": 999_983},
    "patterns of names": {
        "type": "object",
        "patternProperties": {f"^a{n}.*b{n}$": {"type": "integer"} for n in range(230)},
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("others", ["text", "json"])
async def test_a_schema_that_is_slow_to_compile_does_not_hold_others_up(
    client: httpx.AsyncClient, name: str, others: str
) -> None:
    schema = {**COSTLY[name], "title": f"not compiled before, {others}"}
    costly = asyncio.create_task(ask(client, response_format=form(schema), max_tokens=3))
    worst, number = 0.0, 0
    while not costly.done():
        number += 1
        own = form({"type": "string", "maxLength": number}) if others == "json" else None
        before = time.monotonic()
        await choices(client, response_format=own, max_tokens=2)
        worst = max(worst, time.monotonic() - before)
    assert costly.result().status_code in (200, 400)
    assert worst < 2


@pytest.mark.parametrize(
    "schema",
    [
        BAD["more optional fields than a row"],
        BAD["a multiple that cannot begin"],
        BAD["loop through allOf"],
        BAD["a union that is too large"],
        {"type": "string", "pattern": "^((a{1,100}){1,100}){50,100}$"},
    ],
    ids=["fields", "multiple", "loop", "union", "pattern"],
)
async def test_a_schema_that_fails_while_an_answer_is_made_is_never_a_wrong_answer(
    client: httpx.AsyncClient, schema: dict[str, Any]
) -> None:
    reply = await ask(client, response_format=form(schema), temperature=0, max_tokens=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "invalid_schema"


IMAGE = Image.new("RGB", (64, 64), "red")


async def test_each_choices_logprob_is_that_of_its_tokens_in_a_prompt(client: httpx.AsyncClient) -> None:
    """Also for an image and choices that were asked before, and are in the prefix cache in part."""
    question = image_message("What color is the circle?", data_url(IMAGE))
    names = ["Red", "Red circle", "Light blue", "größer", "\U0001f388"]
    length = (await ask(client, messages=[question], max_tokens=1)).json()["usage"]["prompt_tokens"]
    expected = []
    for name in names:
        answered = [question, {"role": "assistant", "content": name}]
        reply = (await ask(client, messages=answered, prompt_logprobs=0, max_tokens=1, return_token_ids=True)).json()
        entries = reply["prompt_logprobs"]
        assert len(entries) == reply["usage"]["prompt_tokens"] == len(reply["prompt_token_ids"])
        assert len(reply["choices"][0]["token_ids"]) == 1
        assert sum(entry is None for entry in entries) == 1 + reply["usage"]["prompt_tokens_details"]["image_tokens"]
        expected.append(sum(next(iter(entry.values()))["logprob"] for entry in entries[length:]))
    for _ in range(2):
        fields = {"messages": [question], "structured_outputs": {"choice": names}, "logprobs": True, "temperature": 1}
        (choice,) = await choices(client, **fields)
        assert content(choice) in names
        scores = choice["choice_logprobs"]
        assert [score["logprob"] for score in scores] == pytest.approx(expected, abs=1e-2)
        assert sum(score["probability"] for score in scores) == pytest.approx(1)


async def test_a_pattern_is_matched_however_hot_it_is_sampled(client: httpx.AsyncClient) -> None:
    pattern = r"[A-ZÄ]\p{L}{1,8}/[0-9]{2}"
    asked = [choices(client, seed=seed, structured_outputs={"regex": pattern}, **HOT) for seed in SEEDS]
    answers = [content(choice) for (choice,) in await asyncio.gather(*asked)]
    assert all(re.fullmatch(r"[A-ZÄ][^\W\d_]{1,8}/[0-9]{2}", answer) for answer in answers), answers
    assert len(set(answers)) > 5
