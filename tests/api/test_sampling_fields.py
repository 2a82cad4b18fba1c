"""Every knob of a request reaches the engine as it was sent, or is refused with its name."""

from typing import Any

import httpx
import pytest

from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.completions import CompletionRequest
from tests.api.test_chat import CHAT, TOKENIZER, text_body
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks

COMPLETIONS = "/v1/completions"
VOCABULARY = TOKENIZER.get_vocab_size()
NEEDED = {CHAT: {"model", "messages"}, COMPLETIONS: {"model", "prompt"}}

REACHING: list[tuple[str, Any, Any]] = [
    # field, as it is sent, as the engine gets it
    ("temperature", 0, 0.0),
    ("temperature", 2, 2.0),
    ("temperature", 5, 2.0),
    ("temperature", "0.7", 0.7),
    ("seed", 42.0, 42),
    ("seed", "42", 42),
    ("ignore_eos", "true", True),
    ("top_p", 0.25, 0.25),
    ("presence_penalty", -2, -2.0),
    ("frequency_penalty", 1.5, 1.5),
    ("repetition_penalty", 1.1, 1.1),
    ("top_k", 40, 40),
    ("top_k", -1, 0),
    ("min_p", 0.05, 0.05),
    ("min_tokens", 5, 5),
    ("ignore_eos", True, True),
    ("skip_special_tokens", False, False),
    ("seed", -(2**63), -(2**63)),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("stop", "end", ("end",)),
    ("stop", ["a", "b", "c", "d"], ("a", "b", "c", "d")),
    ("stop", [], ()),
    ("stop", "", ()),
    ("stop", ["a", "", "e"], ("a", "e")),
    ("stop", list("abcdefgh"), tuple("abcdefgh")),
    ("top_p", 0, 1),
    ("logit_bias", [], ()),
    # 2 is the tokenizer's own end token, which ends an answer whatever the caller adds.
    ("stop_token_ids", [7, 9], (2, 7, 9)),
    ("logit_bias", {"7": -100, "9": 1.5}, ((7, -100.0), (9, 1.5))),
]

OUT_OF_BOUNDS: list[tuple[str, Any, str]] = [
    # field, value, what the refusal names
    ("temperature", -0.1, "temperature"),
    ("temperature", "warm", "temperature"),
    ("top_p", -0.1, "top_p"),
    ("top_p", 1.1, "top_p"),
    ("presence_penalty", 2.1, "presence_penalty"),
    ("presence_penalty", -2.1, "presence_penalty"),
    ("frequency_penalty", 2.1, "frequency_penalty"),
    ("frequency_penalty", -2.1, "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("repetition_penalty", 10.1, "repetition_penalty"),
    ("top_k", -2, "top_k"),
    ("top_k", 2**31, "top_k"),
    ("min_p", -0.1, "min_p"),
    ("min_p", 1.1, "min_p"),
    ("min_tokens", -1, "min_tokens"),
    ("min_tokens", 5000, "min_tokens"),
    ("ignore_eos", "often", "ignore_eos"),
    ("seed", 2**63, "seed"),
    ("seed", -(2**63) - 1, "seed"),
    ("seed", 10**30, "seed"),
    ("stop", ["a"] * 65, "stop"),
    ("stop", ["a" * 257], "stop[0]"),
    ("stop", ["a", None], "stop[1]"),
    ("stop_token_ids", [VOCABULARY], "stop_token_ids"),
    ("stop_token_ids", [-1], "stop_token_ids[0]"),
    ("stop_token_ids", [5] * 65, "stop_token_ids"),
    ("logit_bias", {str(VOCABULARY): 1}, "logit_bias"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {"circle": 1}, "logit_bias"),
    ("logit_bias", {"7": 100.5}, "logit_bias.7"),
    ("logit_bias", {"7": None}, "logit_bias.7"),
    ("logit_bias", {str(token): 1 for token in range(1025)}, "logit_bias"),
    ("logit_bias", [7], "logit_bias"),
    ("n", 0, "n"),
    ("n", 17, "n"),
    ("n", 1.5, "n"),
    ("max_tokens", -3, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
]

CHAT_ONLY: list[tuple[str, Any, str]] = [
    ("max_completion_tokens", -3, "max_completion_tokens"),
    ("top_logprobs", 3, "top_logprobs"),
    ("logprobs", 3, "logprobs"),
    ("modalities", ["audio"], "modalities[0]"),
]


def asked(address: str, **more: Any) -> dict[str, Any]:
    return text_body(**more) if address == CHAT else {"model": "tiny", "prompt": "Hello.", **more}


@pytest.mark.parametrize("address", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "sent", "got"), REACHING)
async def test_a_knob_reaches_the_engine(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str, field: str, sent: Any, got: Any
) -> None:
    reply = await client.post(address, json=asked(address, **{field: sent}))
    assert reply.status_code == 200
    assert getattr(engine.requests[-1].sampling, field) == got


@pytest.mark.parametrize("address", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "sent", "param"), OUT_OF_BOUNDS)
async def test_a_bound_refuses_and_names_the_field(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str, field: str, sent: Any, param: str
) -> None:
    reply = await client.post(address, json=asked(address, **{field: sent}))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert engine.requests == []


@pytest.mark.parametrize(("field", "sent", "param"), CHAT_ONLY)
async def test_a_bound_of_chat_alone(
    client: httpx.AsyncClient, engine: ScriptedEngine, field: str, sent: Any, param: str
) -> None:
    reply = await client.post(CHAT, json=text_body(**{field: sent}))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert engine.requests == []


@pytest.mark.parametrize(("address", "model"), [(CHAT, ChatCompletionRequest), (COMPLETIONS, CompletionRequest)])
async def test_null_everywhere_is_as_if_nothing_was_sent(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str, model: type[Any]
) -> None:
    nulls = dict.fromkeys({*model.model_fields, *model.refused} - NEEDED[address])
    for body in (asked(address), asked(address, **nulls)):
        assert (await client.post(address, json=body)).status_code == 200
    plain, with_nulls = engine.requests
    assert with_nulls.sampling == plain.sampling
    assert (with_nulls.max_tokens, with_nulls.choices) == (plain.max_tokens, plain.choices)
    assert with_nulls.token_ids == plain.token_ids


@pytest.mark.parametrize("address", [CHAT, COMPLETIONS])
async def test_an_empty_text_for_what_is_no_text_is_as_if_nothing_was_sent(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str
) -> None:
    names = "temperature top_p top_k min_p max_tokens seed n stream logprobs presence_penalty logit_bias stream_options"
    chat = {"response_format": {}, "tool_choice": "", "tools": "", "modalities": "", "max_completion_tokens": ""}
    for fields in ({}, dict.fromkeys(names.split(), "") | (chat if address == CHAT else {})):
        assert (await client.post(address, json=asked(address, **fields))).status_code == 200
    plain, with_blanks = engine.requests
    assert with_blanks.sampling == plain.sampling
    assert with_blanks.max_tokens == plain.max_tokens


async def test_ignore_eos_takes_away_every_end_but_the_callers(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await client.post(CHAT, json=text_body(ignore_eos=True, stop="x", stop_token_ids=[7]))
    sampling = engine.requests[-1].sampling
    assert (sampling.stop, sampling.stop_token_ids) == (("x",), (7,))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"max_tokens": 9, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 5),
        ({"max_tokens": -1, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": -2}, None),
        ({"max_completion_tokens": 0}, None),
        ({"max_completion_tokens": 100_000}, None),
        ({"max_tokens": "512"}, 512),
        ({"max_tokens": 24.0}, 24),
    ],
)
async def test_the_smaller_bound_holds_up_to_what_fits(
    client: httpx.AsyncClient, engine: ScriptedEngine, bounds: dict[str, Any], expected: int | None
) -> None:
    reply = await client.post(CHAT, json=text_body(**bounds))
    fitting = engine.max_model_len - reply.json()["usage"]["prompt_tokens"]
    assert engine.requests[-1].max_tokens == (fitting if expected is None else expected)


async def test_top_p_0_takes_the_most_likely_token(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    assert (await client.post(CHAT, json=text_body(top_p=0, temperature=1.5))).status_code == 200
    assert engine.requests[-1].sampling.temperature == 0


@pytest.mark.parametrize("field", ["metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier"])
@pytest.mark.parametrize("value", [1, {"a": 1}, ["b"], "c"], ids=repr)
async def test_accepted_fields_take_any_value(client: httpx.AsyncClient, field: str, value: object) -> None:
    assert (await client.post(CHAT, json=text_body(**{field: value}))).status_code == 200


async def test_min_tokens_may_be_all_of_the_answer_and_no_more(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    assert (await client.post(CHAT, json=text_body(min_tokens=9, max_tokens=9))).status_code == 200
    reply = await client.post(CHAT, json=text_body(min_tokens=10, max_tokens=9))
    assert reply.json()["error"]["param"] == "min_tokens"
    assert len(engine.requests) == 1


async def test_fields_that_are_taken_and_change_nothing(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    idle = {
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "metadata": {"a": "b"},
        "service_tier": "priority",
        "store": False,
        "parallel_tool_calls": False,
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "tool_choice": "none",
        "tools": [],
    }
    await client.post(CHAT, json=text_body())
    reply = await client.post(CHAT, json=text_body(**idle))
    assert reply.json()["service_tier"] == "default"
    plain, with_idle = engine.requests
    assert (with_idle.sampling, with_idle.token_ids) == (plain.sampling, plain.token_ids)


# n

SPOKEN = {0: (" A red", " circle", "."), 1: (" A blue", " square", "!"), 2: (" No", " idea", "?")}
SAID = ["A red circle.", "A blue square!", "No idea?"]


async def test_several_answers_whole(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.other_choices = SPOKEN
    reply = (await client.post(CHAT, json=text_body(n=3, temperature=1))).json()
    assert [choice["message"]["content"] for choice in reply["choices"]] == SAID
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 9
    assert engine.requests[-1].choices == 3


async def test_several_answers_streamed(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.other_choices = SPOKEN
    body = text_body(n=3, temperature=1, stream=True, stream_options={"include_usage": True})
    received = chunks((await client.post(CHAT, json=body)).content)
    texts, roles, reasons = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for chunk in received[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles[choice["index"]] += "role" in choice["delta"]
        reasons[choice["index"]] += choice["finish_reason"] == "stop"
    assert (texts, roles, reasons) == (SAID, [1, 1, 1], [1, 1, 1])
    assert received[-1]["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("stream", [True, False])
async def test_without_chance_one_answer_is_made_and_copied(
    client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    body = text_body(n=3, temperature=0, stream=stream)
    reply = await client.post(CHAT, json=body)
    assert engine.requests[-1].choices == 1
    if not stream:
        assert [choice["message"]["content"] for choice in reply.json()["choices"]] == ["A red circle."] * 3
        assert reply.json()["usage"]["completion_tokens"] == 9
        return
    texts = ["", "", ""]
    for chunk in chunks(reply.content):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["A red circle."] * 3


async def test_an_answer_of_several_that_fails_ends_them_all(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.fail_at = 1
    reply = await client.post(CHAT, json=text_body(n=3, temperature=1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert engine.unfinished == 0


@pytest.mark.parametrize("address", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("include_usage", [False, True])
async def test_continuous_usage_counts_up_in_every_chunk(
    client: httpx.AsyncClient, address: str, include_usage: bool
) -> None:
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    reply = await client.post(address, json=asked(address, stream=True, stream_options=options))
    received = chunks(reply.content)
    counts = [chunk["usage"]["completion_tokens"] for chunk in received]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 3)
    assert all(chunk["usage"]["prompt_tokens"] == received[0]["usage"]["prompt_tokens"] > 0 for chunk in received)
    assert (received[-1]["choices"] == []) is include_usage


async def test_max_tokens_0_of_a_completion_says_nothing(client: httpx.AsyncClient) -> None:
    reply = (await client.post(COMPLETIONS, json=asked(COMPLETIONS, max_tokens=0))).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("", "length")
    assert reply["usage"]["completion_tokens"] == 0


async def test_max_tokens_below_0_of_a_completion_is_no_bound(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    reply = await client.post(COMPLETIONS, json=asked(COMPLETIONS, max_tokens=-1))
    assert engine.requests[-1].max_tokens == engine.max_model_len - reply.json()["usage"]["prompt_tokens"]
