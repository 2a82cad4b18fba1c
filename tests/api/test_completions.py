"""``/v1/completions``: prompts as they are, written on."""

from typing import Any

import httpx
import pytest

from tests.api.test_chat import IMAGE_TOKEN, TOKENIZER
from tests.api.test_sampling_fields import COMPLETIONS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks


def body(prompt: Any = "A red", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, **more}


def shown(engine: ScriptedEngine, request: int = -1) -> str:
    """The prompt that the engine was given, special tokens shown."""
    decoded: str = TOKENIZER.decode(engine.requests[request].token_ids, skip_special_tokens=False)
    return decoded


async def test_a_whole_answer(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    data = (await client.post(COMPLETIONS, json=body())).json()
    prompt_tokens = len(engine.requests[-1].token_ids)
    assert data == {
        "id": data["id"],
        "object": "text_completion",
        "created": data["created"],
        "model": "tiny",
        # A completion goes on where the prompt ends: its first space belongs to it.
        "choices": [{"index": 0, "text": " A red circle.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 3,
            "total_tokens": prompt_tokens + 3,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 0},
        },
        "system_fingerprint": data["system_fingerprint"],
    }
    assert data["id"].startswith("cmpl-")


async def test_a_stream(client: httpx.AsyncClient) -> None:
    reply = await client.post(COMPLETIONS, json=body(stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks(reply.content)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == " A red circle."
    assert [piece["choices"][0]["finish_reason"] for piece in pieces][-1] == "stop"
    assert len({piece["id"] for piece in pieces}) == 1
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


async def test_a_text_is_shown_behind_bos_and_nothing_else(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(COMPLETIONS, json=body("USER: hi </s><image>"))
    ids = engine.requests[-1].token_ids
    assert ids[0] == 1
    assert {1, 2, IMAGE_TOKEN} & set(ids[1:]) == set()
    assert shown(engine).split(">", 1)[1].strip() == "USER: hi </s><image>"
    assert engine.requests[-1].images == ()


async def test_token_ids_are_taken_as_they_are(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(COMPLETIONS, json=body([7, 2, 9]))
    assert engine.requests[-1].token_ids == [7, 2, 9]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [["A", "B", "C"], [[7], [8, 9], [10]]], ids=["texts", "ids"])
async def test_several_prompts_with_several_answers(
    client: httpx.AsyncClient, engine: ScriptedEngine, prompts: Any, stream: bool
) -> None:
    engine.other_choices = {1: (" B", " ", "!")}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    reply = await client.post(COMPLETIONS, json=body(prompts, n=2, temperature=1, stream=stream, **options))
    expected = [" A red circle.", " B !"] * 3
    if stream:
        *pieces, last = chunks(reply.content)
        texts, reasons = [""] * 6, [0] * 6
        for piece in pieces:
            (choice,) = piece["choices"]
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] += choice["finish_reason"] is not None
        assert (texts, reasons) == (expected, [1] * 6)
        usage = last["usage"]
    else:
        assert [choice["index"] for choice in reply.json()["choices"]] == list(range(6))
        assert [choice["text"] for choice in reply.json()["choices"]] == expected
        usage = reply.json()["usage"]
    assert len({request.request_id for request in engine.requests}) == 3
    assert usage["completion_tokens"] == 18
    assert usage["prompt_tokens"] == sum(len(request.token_ids) for request in engine.requests)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_echo_goes_first_once_in_each_answer(
    client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    reply = await client.post(COMPLETIONS, json=body(["One:", "Two:"], echo=True, n=2, temperature=0, stream=stream))
    texts = [""] * 4
    found = chunks(reply.content) if stream else [reply.json()]
    for choice in (choice for part in found for choice in part["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["One: A red circle."] * 2 + ["Two: A red circle."] * 2


async def test_the_echo_of_token_ids_is_their_text(client: httpx.AsyncClient) -> None:
    ids = TOKENIZER.encode("Hi \U0001f388", add_special_tokens=False).ids
    reply = await client.post(COMPLETIONS, json=body([1, *ids], echo=True))
    assert reply.json()["choices"][0]["text"] == "Hi \U0001f388 A red circle."


async def test_the_echo_alone(client: httpx.AsyncClient) -> None:
    reply = (await client.post(COMPLETIONS, json=body("Hi", echo=True, max_tokens=0))).json()
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert reply["usage"]["completion_tokens"] == 0


async def test_an_answer_has_16_tokens_where_nothing_else_is_said(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await client.post(COMPLETIONS, json=body())
    await client.post(COMPLETIONS, json=body(max_tokens=5))
    assert [request.max_tokens for request in engine.requests] == [16, 5]


async def test_an_adapter_answers_by_its_name(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(COMPLETIONS, json={**body(), "model": "birds"})
    assert reply.json()["model"] == "birds"
    adapter = engine.requests[-1].adapter
    assert adapter is not None
    assert adapter.name == "birds"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("other model", {**body(), "model": "gpt"}, "model"),
    ("no prompt", {"model": "tiny"}, "prompt"),
    ("null", body(None), "prompt"),
    ("a number", body(5), "prompt"),
    ("an object", body({"text": "a"}), "prompt"),
    ("empty list", body([]), "prompt"),
    ("empty ids", body([[]]), "prompt"),
    ("an empty one among others", body([[], [7]]), "prompt"),
    ("ids and a text", body([7, "a"]), "prompt[1]"),
    ("a fraction", body([7.5]), "prompt[0]"),
    ("a boolean", body([True]), "prompt[0]"),
    ("negative", body([-1]), "prompt[0]"),
    ("no such id", body([10_000]), "prompt"),
    ("the token of pictures", body([7, IMAGE_TOKEN]), "prompt"),
    ("17 prompts", body(["a"] * 17), "prompt"),
    ("4 x 5 answers", body(["a"] * 4, n=5), "prompt"),
    ("too long", body([7] * 3000), "prompt"),
    ("too long a text", body("word " * 3000), "prompt"),
    ("a token id too large", body([1, 10**6]), "prompt"),
    ("suffix", body(suffix="."), "suffix"),
    ("six likeliest", body(logprobs=6), "logprobs"),
    ("best of more", body(best_of=2), "best_of"),
    ("messages", body(messages=[{"role": "user", "content": "a"}]), "messages"),
    ("response_format", body(response_format={"type": "json_object"}), "response_format"),
]


@pytest.mark.parametrize(("sent", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refusals(client: httpx.AsyncClient, engine: ScriptedEngine, sent: dict[str, Any], param: str) -> None:
    reply = await client.post(COMPLETIONS, json=sent)
    assert reply.status_code in (400, 404)
    assert reply.json()["error"]["param"] == param
    assert engine.requests == []
    assert (await client.post(COMPLETIONS, json=body())).status_code == 200


async def test_best_of_as_many_as_are_wanted(client: httpx.AsyncClient) -> None:
    for fields in ({"best_of": 1}, {"n": 2, "best_of": 2, "temperature": 1}):
        assert (await client.post(COMPLETIONS, json=body(**fields))).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_fails_fails_all_prompts(
    client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    engine.fail_at = 0
    reply = await client.post(COMPLETIONS, json=body(["A", "B"], stream=stream))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert engine.unfinished == 0
    engine.fail_at = None
    assert (await client.post(COMPLETIONS, json=body())).status_code == 200


async def test_a_failure_later_ends_the_stream_with_one_error(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_at = 2
    reply = await client.post(COMPLETIONS, json=body(["A", "B"], stream=True))
    assert reply.content.count(b'"error"') == 1
    assert b"[DONE]" not in reply.content
    assert engine.unfinished == 0
