"""Answers that are one of some texts, or what a pattern matches: vLLM's ``structured_outputs`` and its older names."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llguidance import LLMatcher, LLTokenizer

from llava_api.chat import choice_scores
from llava_api.prompts.hub_template import HubTemplate
from tests.api.test_chat import CHAT, RED, image_message, text_body
from tests.api.test_logprobs import ids, speak
from tests.api.test_sampling_fields import COMPLETIONS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks
from tests.support.waiting import until

BYTES = LLTokenizer("byte")
COLOURS = ["red", "green", "blue"]


def choice(*texts: str, **more: Any) -> dict[str, Any]:
    return text_body(structured_outputs={"choice": list(texts)}, **more)


def regex(pattern: str) -> dict[str, Any]:
    return text_body(structured_outputs={"regex": pattern})


def allows(engine: ScriptedEngine, text: str) -> bool:
    """Whether ``text`` is a whole answer to the grammar of the last request."""
    grammar = engine.requests[-1].sampling.grammar
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    tokens = BYTES.tokenize_str(text)
    read: int = matcher.validate_tokens(tokens)
    return read == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


async def refusal(client: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> tuple[int, str, str]:
    reply = await client.post(path, json=body)
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["message"]


ODD = ["dog", "dog house", "größer", "\U0001f388", 'a "b" \\ /', "two\nlines", "1", "12"]


@pytest.mark.parametrize("texts", [COLOURS, ODD], ids=["words", "odd"])
async def test_the_answer_is_one_of_the_choices(
    client: httpx.AsyncClient, engine: ScriptedEngine, texts: list[str]
) -> None:
    for text in texts:
        engine.say(f" {text}")
        (made,) = (await client.post(CHAT, json=choice(*texts))).json()["choices"]
        assert (made["message"]["content"], made["finish_reason"]) == (text, "stop")
        assert allows(engine, f" {text}")
        assert allows(engine, text)
        assert not allows(engine, f"  {text}")
        assert not allows(engine, f"{text}.")


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"[0-9]{1,3}", ["7", " 77"], ["7777", "", "x"]),
        (r"^\d+$", ["12"], ["12x"]),
        (r"\d/\d\d", ["1/20"], ["1|20"]),
        (r"a\/b|[/]\\", ["a/b", "/\\"], ["ab"]),
        (r"(?i)yes|no", ["YES", "no"], ["y"]),
        (r"\p{L}+ [^\n]*", ["größer als"], ["1 a"]),
    ],
)
async def test_the_whole_answer_matches_a_pattern(
    client: httpx.AsyncClient, engine: ScriptedEngine, pattern: str, matching: list[str], others: list[str]
) -> None:
    assert (await client.post(CHAT, json=regex(pattern))).status_code == 200
    assert [text for text in matching if not allows(engine, text)] == []
    assert [text for text in others if allows(engine, text)] == []


@pytest.mark.parametrize("body", [choice(" red", "blue"), regex(" red|blue")], ids=["choice", "regex"])
async def test_a_space_of_the_caller_is_part_of_the_answer(
    client: httpx.AsyncClient, engine: ScriptedEngine, body: dict[str, Any]
) -> None:
    engine.say(" red")
    (made,) = (await client.post(CHAT, json=body)).json()["choices"]
    assert (made["message"]["content"], made["finish_reason"]) == (" red", "stop")
    assert allows(engine, "blue")
    assert not allows(engine, " blue")


async def test_a_completion_and_a_continued_answer_have_no_space_of_their_own(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = choice(*COLOURS, continue_final_message=True)
    body["messages"].append({"role": "assistant", "content": "It is "})
    completion = {"model": "tiny", "prompt": "It is ", "structured_outputs": {"choice": COLOURS}}
    for path, sent in ((CHAT, body), (COMPLETIONS, completion)):
        engine.say("red")
        (made,) = (await client.post(path, json=sent)).json()["choices"]
        assert made["finish_reason"] == "stop"
        assert allows(engine, "red")
        assert not allows(engine, " red")


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"guided_choice": COLOURS}, {"choice": COLOURS}),
        ({"guided_choice": [*COLOURS, "red"]}, {"choice": COLOURS}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_json": {"enum": COLOURS}}, {"json": {"enum": COLOURS}}),
        ({"guided_json": '{"enum": ["red"]}'}, {"json": {"enum": ["red"]}}),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1]}}}},
            {"json": {"enum": [1]}},
        ),
    ],
)
async def test_forms_have_several_names(
    client: httpx.AsyncClient, engine: ScriptedEngine, older: dict[str, Any], newer: dict[str, Any]
) -> None:
    for fields in (older, {"structured_outputs": newer}):
        assert (await client.post(CHAT, json=text_body(**fields))).status_code == 200
    first, second = (request.sampling.grammar for request in engine.requests)
    assert first == second is not None


JSON_FORM = {"type": "json_object"}
TOOL = {"type": "function", "function": {"name": "look"}}
SO = "structured_outputs"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "only an unknown one": ({SO: {"choices": COLOURS}}, SO, "choice, regex, json"),
    "two": ({SO: {"choice": COLOURS, "regex": "a"}}, f"{SO}.regex", f"send {SO}.choice or {SO}.regex"),
    "two names": ({SO: {"choice": COLOURS}, "guided_regex": "a"}, f"{SO}.choice", "guided_regex"),
    "beside JSON": ({SO: {"choice": COLOURS}, "response_format": JSON_FORM}, f"{SO}.choice", "response_format"),
    "beside tools": ({"guided_regex": "a", "tools": [TOOL]}, "guided_regex", "send tools or guided_regex"),
    "a grammar": ({SO: {"grammar": "start: A"}}, f"{SO}.grammar", "send a choice, a regex or a JSON schema"),
    "a tag": ({SO: {"structural_tag": "{}"}}, f"{SO}.structural_tag", "send a choice"),
    "an old grammar": ({"guided_grammar": "start: A"}, "guided_grammar", "send a choice"),
    "no choices": ({SO: {"choice": []}}, f"{SO}.choice", "1 or more"),
    "an empty choice": ({"guided_choice": ["a", ""]}, "guided_choice[1]", "1 or more characters"),
    "no texts": ({SO: {"choice": [1, 2]}}, f"{SO}.choice[0]", "a string"),
    "many choices": ({SO: {"choice": [str(n) for n in range(1001)]}}, f"{SO}.choice", "up to 1000"),
    "a long choice": ({SO: {"choice": ["a" * 513]}}, f"{SO}.choice[0]", "up to 512"),
    "large choices": ({SO: {"choice": [f"{n}" * 100 for n in range(1000)]}}, f"{SO}.choice", "64000 bytes"),
    "a special token": ({SO: {"choice": ["a</s>"]}}, f"{SO}.choice", "special token"),
    "a long pattern": ({SO: {"regex": "a" * 513}}, f"{SO}.regex", "up to 512"),
    "no pattern": ({SO: {"regex": "(("}}, f"{SO}.regex", "unclosed group"),
    "look-ahead": ({SO: {"regex": "(?=a)b"}}, f"{SO}.regex", "look-around"),
    "look-behind": ({SO: {"regex": "(?<!a)b"}}, f"{SO}.regex", "look-around"),
    "back reference": ({SO: {"regex": r"(a)\1"}}, f"{SO}.regex", "backreferences"),
    "a costly pattern": ({SO: {"regex": "((a{0,99}){0,99}){0,99}"}}, f"{SO}.regex", ""),
    "a bad schema": ({SO: {"json": {"type": "integer", "minimum": 5, "maximum": 3}}}, f"{SO}.json", "Invalid schema"),
    "text that is no schema": ({"guided_json": "{"}, "guided_json", ""),
    "fewest tokens": ({SO: {"choice": COLOURS}, "min_tokens": 3}, "min_tokens", "complete"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals(client: httpx.AsyncClient, engine: ScriptedEngine, name: str) -> None:
    fields, param, words = REFUSED[name]
    status, found, message = await refusal(client, text_body(**fields))
    assert (status, found) == (400, param)
    assert words in message
    assert engine.requests == []
    if not {"response_format", "tools"} & fields.keys():
        assert await refusal(client, {"model": "tiny", "prompt": "a", **fields}, COMPLETIONS) == (400, found, message)


async def test_an_answer_that_is_cut_is_not_complete(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """By a stop text of the caller's, in the middle of a choice."""
    engine.say(" gre")
    (made,) = (await client.post(CHAT, json=choice(*COLOURS, stop="en"))).json()["choices"]
    assert (made["message"]["content"], made["finish_reason"]) == ("gre", "length")


# The probability of each choice


def likelihoods(engine: ScriptedEngine, **letters: float) -> None:
    engine.letters = {ids(letter)[0]: logprob for letter, logprob in letters.items()}


async def scores(client: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> dict[str, tuple[float, float]]:
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    (made,) = reply.json()["choices"]
    return {row["choice"]: (row["logprob"], row["probability"]) for row in made["choice_logprobs"]}


async def test_each_choice_is_scored_after_the_prompt_with_its_image(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    speak(engine, (" b", ids(" b")))
    likelihoods(engine, a=-3.0, b=-0.25, c=-2.0)
    body = {"model": "tiny", "messages": [image_message("Which?", RED)], "structured_outputs": {"choice": ["a", "b"]}}
    found = await scores(client, body | {"logprobs": True})
    answer, *scored = engine.requests
    # The space before a choice is one of its tokens.
    assert {name: logprob for name, (logprob, _) in found.items()} == {"a": -4.0, "b": -1.25}
    assert [share for _, share in found.values()] == pytest.approx(
        [math.exp(-2.75) / (1 + math.exp(-2.75)), 1 / (1 + math.exp(-2.75))]
    )
    assert [request.token_ids for request in scored] == [answer.token_ids + ids(f" {name}") for name in "ab"]
    assert all(request.images == answer.images for request in scored)
    assert all(request.sampling.grammar is None and request.max_tokens == 1 for request in scored)


async def test_a_choice_that_begins_a_longer_one_has_what_that_leaves(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.say(" a")
    likelihoods(engine, a=math.log(0.8), b=math.log(0.75), c=math.log(0.1))
    engine.letters[ids(" ")[0]] = 0.0
    found = await scores(client, choice("a", "ab", "c", logprobs=True))
    assert {name: round(math.exp(logprob), 4) for name, (logprob, _) in found.items()} == {
        "a": 0.8,
        "ab": 0.6,
        "c": 0.1,
    }
    assert {name: round(share * 0.9, 4) for name, (_, share) in found.items()} == {"a": 0.2, "ab": 0.6, "c": 0.1}


async def test_tokens_that_the_prefix_cache_has_are_computed_again(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.say(" a")
    engine.cached_tail = True
    likelihoods(engine, a=-3.0)
    assert (await scores(client, choice("a", "b", logprobs=True)))["a"][0] == -4.0


async def test_without_logprobs_nothing_is_scored(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    (made,) = (await client.post(CHAT, json=choice("a"))).json()["choices"]
    assert "choice_logprobs" not in made
    assert len(engine.requests) == 1


async def test_a_stream_has_the_scores_in_its_last_chunk(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.say(" a")
    body = choice("a", "b", logprobs=True)
    expected = await scores(client, body)
    received = [part["choices"][0] for part in chunks((await client.post(CHAT, json=body | {"stream": True})).content)]
    assert ["choice_logprobs" in part for part in received] == [False] * (len(received) - 1) + [True]
    assert {row["choice"]: (row["logprob"], row["probability"]) for row in received[-1]["choice_logprobs"]} == expected


async def test_choices_of_a_completion(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.say("a")
    likelihoods(engine, a=-3.0)
    sent = {"model": "tiny", "prompt": "Hi ", "structured_outputs": {"choice": ["a", "b"]}, "logprobs": 0}
    assert {name: logprob for name, (logprob, _) in (await scores(client, sent, COMPLETIONS)).items()} == {
        "a": -3.0,
        "b": -1.0,
    }
    by_ids = (await client.post(COMPLETIONS, json=sent | {"prompt": [1, *ids(" Hi ")]})).json()["choices"][0]
    assert "choice_logprobs" not in by_ids


async def test_white_space_that_a_chat_template_leaves_out_has_no_score(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    """It has no token, and all of the prompt's would be added up for it."""
    template = "{% for m in messages %}\nsaid: {{ m.content[0].text | trim }}{% endfor %}"
    template += "{% if add_generation_prompt %}\nsaid: {% endif %}"
    preparer = app.state.services.preparer
    preparer.model = replace(preparer.model, family=HubTemplate(template, (), "<s>", "</s>"))
    engine.say("a")
    assert (await client.post(CHAT, json=choice("a", " "))).status_code == 200
    assert (await scores(client, choice("a", " b", logprobs=True)))["a"][0] == -1
    engine.requests.clear()
    status, param, message = await refusal(client, choice("a", " ", logprobs=True))
    assert (status, param, engine.requests) == (400, "logprobs", [])
    assert "white space" in message


async def test_the_scores_of_too_many_choices_are_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"name {n}" for n in range(257)]
    status, param, message = await refusal(client, choice(*many, logprobs=True))
    assert (status, param) == (400, "logprobs")
    assert "256 choices" in message
    assert (await client.post(CHAT, json=choice(*many))).status_code == 200
    monkeypatch.setattr(choice_scores, "MOST_SIZE", 1000)
    assert (await refusal(client, choice(*many[:200], logprobs=True)))[1] == "logprobs"
    assert (await client.post(CHAT, json=choice(*many[:100], logprobs=True))).status_code == 200
    # An image has 36 tokens.
    shown = choice(*many[:30], logprobs=True) | {"messages": [image_message("Hello.", RED)]}
    status, param, message = await refusal(client, shown)
    assert (status, param) == (400, "logprobs")
    assert "image tokens" in message


async def test_scored_choices_are_held_in_memory(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    """Their own tokens, not the prompt's, which are written for one choice at a time."""
    engine.pause_seconds = 60
    body = choice("a" * 500, "b" * 500, logprobs=True) | {"messages": [image_message("x" * 400, RED)]}
    asking = asyncio.create_task(client.post(CHAT, json=body))
    await until(lambda: engine.unfinished)
    pixels = engine.requests[0].images[0].pixels.nbytes
    # Each choice has a token for its space, too.
    assert app.state.services.memory.held_bytes == pixels + 2 * 501 * choice_scores.TOKEN_BYTES
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: app.state.services.memory.held_bytes == 0)


async def test_a_choice_that_does_not_fit_behind_the_prompt_is_refused(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = choice("a", "b" * 400, logprobs=True)
    body["messages"][0]["content"] = "x" * 1800
    status, param, message = await refusal(client, body)
    assert (status, param) == (400, "messages")
    assert "maximum context length" in message
    assert engine.requests == []


class TestTokenLimit:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"tokens_per_minute": 1000}

    async def test_the_tokens_of_scored_choices_are_counted(
        self, client: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        """With the prompt before each of them, which the engine computes if it has the choice's own in its cache."""
        body = choice("a" * 99, "b" * 99, logprobs=True) | {"messages": [image_message("x", RED)]}
        reply = await client.post(CHAT, json=body)
        left, usage = int(reply.headers["x-ratelimit-remaining-tokens"]), reply.json()["usage"]
        assert usage["prompt_tokens_details"]["image_tokens"] == 36
        # Each choice has a token for its space, too.
        assert 1000 - left == usage["total_tokens"] + 2 * (usage["prompt_tokens"] + 100)
        assert (await refusal(client, choice(*"abcdefghij", logprobs=True)))[0] == 400
