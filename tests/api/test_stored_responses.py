"""What a server with a response store has below ``/v1/responses``, through openai's client where it has a call."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.responses import ResponseItemList
from pydantic import BaseModel

from llava_api.chat.grammar import call_prefix
from tests.api.test_chat import prompt_of
from tests.api.test_responses import RED, TOOL, URL, body
from tests.support.scripted_engine import ScriptedEngine

IMAGE = {"type": "input_image", "image_url": RED, "detail": "low"}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"response_store_bytes": 100_000}


@pytest_asyncio.fixture
async def openai_client(port: int) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made


async def listed(client: httpx.AsyncClient, response_id: str, query: str = "order=asc") -> dict[str, Any]:
    reply = await client.get(f"{URL}/{response_id}/input_items?{query}")
    assert reply.status_code == 200, reply.text
    # As the client's own types have it.
    ResponseItemList.model_validate(reply.json())
    found: dict[str, Any] = reply.json()
    return found


async def test_openais_client(openai_client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    responses = openai_client.responses
    made = await responses.create(model="tiny", input="What is it?", instructions="Be brief.")
    assert (made.output_text, made.store) == ("A red circle.", True)
    async with responses.stream(model="tiny", input="And now?", previous_response_id=made.id) as stream:
        assert "".join([event.delta async for event in stream if event.type == "response.output_text.delta"]) == (
            "A red circle."
        )
        second = await stream.get_final_response()
    assert prompt_of(engine).endswith("USER: What is it? ASSISTANT: A red circle.</s> USER: And now? ASSISTANT:")
    assert (await responses.retrieve(second.id)).output_text == "A red circle."
    assert (await responses.retrieve(second.id, stream=False, include=["message.output_text.logprobs"])).id == second.id
    items = [item async for item in responses.input_items.list(second.id, order="asc", limit=1)]
    assert [item.content[0].text for item in items] == ["What is it?", "A red circle.", "And now?"]  # type: ignore[union-attr]
    assert items[1].id == made.output[0].id
    counted = await responses.input_tokens.count(model="tiny", input="And now?", previous_response_id=made.id)
    assert counted.input_tokens == second.usage.input_tokens  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await responses.cancel(made.id)
    await responses.delete(made.id)
    for missing in (responses.retrieve, responses.delete, responses.cancel, responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="There is no response of that id"):
            await missing(made.id)
    with pytest.raises(openai.NotFoundError):
        await responses.compact(model="tiny", input="x")


async def test_openais_client_parses_json_and_calls(openai_client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    class Count(BaseModel):
        n: int

    engine.say('{"n": 3}')
    parsed = await openai_client.responses.parse(model="tiny", input="Count.", text_format=Count)
    assert parsed.output_parsed == Count(n=3)
    engine.say(call_prefix("Count") + '{"n": 4}}')
    called = await openai_client.responses.parse(
        model="tiny",
        input="Count.",
        tools=[openai.pydantic_function_tool(Count)],  # type: ignore[list-item]
        tool_choice="required",
    )
    assert called.output[0].parsed_arguments == Count(n=4)  # type: ignore[union-attr]


async def test_all_kinds_of_input_items(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": RED}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}", "id": "fc_theirs"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "a"}, IMAGE]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Red."}], "phase": "final_answer"},
        {"role": "user", "content": "Why?", "id": "x" * 65},
    ]
    made = (await client.post(URL, json=body(input=items))).json()
    found = (await listed(client, made["id"]))["data"]
    assert [item["type"] for item in found] == [
        *["message"] * 2,
        "function_call",
        "function_call_output",
        *["message"] * 2,
    ]
    assert {item["status"] for item in found} == {"completed"}
    assert [item["id"].partition("_")[0] for item in found] == ["msg", "msg", "fc", "fco", "msg", "msg"]
    assert found[2]["id"] == "fc_theirs"
    assert found[0]["content"] == [{"type": "input_text", "text": "Be brief."}]
    assert found[1]["content"] == [
        {"type": "input_text", "text": "Look."},
        {"type": "input_image", "image_url": RED, "detail": "auto"},
    ]
    assert found[3]["output"] == [{"type": "input_text", "text": "a"}, IMAGE]
    said = {"type": "output_text", "text": "Red.", "annotations": [], "logprobs": []}
    assert (found[4]["content"], found[4]["phase"]) == ([said], "final_answer")
    # Sent again, they are the same prompt.
    assert (await client.post(URL, json=body(input=found))).status_code == 200
    assert engine.requests[0].token_ids == engine.requests[1].token_ids
    again = (await client.post(URL, json=body(previous_response_id=made["id"], input="x"))).json()
    assert (await listed(client, again["id"]))["data"][:-1] == [*found, {**made["output"][0]}]


async def test_pages_of_input_items(client: httpx.AsyncClient) -> None:
    made = (await client.post(URL, json=body(input=[{"role": "user", "content": f"{n}"} for n in range(30)]))).json()

    async def page(query: str) -> tuple[list[int], bool]:
        found = await listed(client, made["id"], query)
        assert [found["first_id"], found["last_id"]] == [found["data"][0]["id"], found["data"][-1]["id"]]
        return [int(item["content"][0]["text"]) for item in found["data"]], found["has_more"]

    ids = [item["id"] for item in (await listed(client, made["id"], "order=asc&limit=100"))["data"]]
    assert await page("") == ([*range(29, 9, -1)], True)
    assert await page(f"after={ids[10]}") == ([*range(9, -1, -1)], False)
    assert await page(f"order=asc&limit=2&after={ids[10]}&include=message.input_image.image_url") == ([11, 12], True)
    assert await page(f"order=asc&limit=3&before={ids[3]}") == ([0, 1, 2], False)
    assert await page(f"order=desc&limit=2&before={ids[27]}") == ([29, 28], False)
    rest = (await client.get(f"{URL}/{made['id']}/input_items?order=asc&after={ids[-1]}")).json()
    assert rest == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for query, param in (
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=msg_0", "after"),
        ("before=msg_0", "before"),
    ):
        reply = await client.get(f"{URL}/{made['id']}/input_items?{query}")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_items_are_referred_to(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    shown = {"role": "user", "content": [{"type": "input_text", "text": "Count."}, IMAGE]}
    engine.say(call_prefix("count") + '{"n": 3}}')
    first = (await client.post(URL, json=body(input=[shown], tools=[TOOL], tool_choice="required"))).json()
    engine.say("Three.")
    call = first["output"][0]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
    given = (await listed(client, first["id"]))["data"][0]["id"]
    references = [{"type": "item_reference", "id": given}, {"id": call["id"]}]
    second = await client.post(URL, json=body(input=[*references, result]))
    assert second.status_code == 200, second.text
    assert "ignored" not in str(second.headers)
    whole = await client.post(URL, json=body(input=[shown, call, result]))
    assert whole.status_code == 200
    assert engine.requests[1].token_ids == engine.requests[2].token_ids
    assert len(engine.requests[1].images) == 1
    # What was referred to belongs to the new response too, and stays with it.
    assert (await client.delete(f"{URL}/{first['id']}")).status_code == 200
    kinds = [item["id"] for item in (await listed(client, second.json()["id"]))["data"]]
    assert kinds[:2] == [given, call["id"]]
    assert (await client.post(URL, json=body(input=[*references, result]))).status_code == 200


async def test_an_item_is_found_as_long_as_a_response_has_it(client: httpx.AsyncClient) -> None:
    first = (await client.post(URL, json=body())).json()
    others = [(await client.post(URL, json=body(previous_response_id=first["id"]))).json()["id"] for _ in range(2)]
    referring = body(input=[{"role": "user", "content": "x"}, {"id": first["output"][0]["id"]}], store=False)
    for gone, status in ((others[0], 200), (first["id"], 200), (others[1], 404)):
        await client.delete(f"{URL}/{gone}")
        assert (await client.post(URL, json=referring)).status_code == status


async def test_ids_that_are_there_twice(client: httpx.AsyncClient) -> None:
    """A page is found by an id, so each id is there once."""
    twice = [{"role": "user", "content": text, "id": "msg_1"} for text in ("a", "b")]
    first = (await client.post(URL, json=body(input=twice))).json()
    second = (await client.post(URL, json=body(input=twice, previous_response_id=first["id"]))).json()
    ids = [item["id"] for item in (await listed(client, second["id"]))["data"]]
    assert ids[0] == "msg_1"
    assert len({*ids}) == len(ids) == 5


async def test_an_item_of_no_stored_response(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    made = (await client.post(URL, json=body())).json()
    await client.delete(f"{URL}/{made['id']}")
    unstored = (await client.post(URL, json=body(store=False))).json()
    # A client's own id could be guessed by others, who share a server without keys.
    await client.post(URL, json=body(input=[{"role": "user", "content": "secret", "id": "msg_1"}]))
    for item_id in (made["output"][0]["id"], unstored["output"][0]["id"], "msg_1", ""):
        items = [{"role": "user", "content": "x"}, {"type": "item_reference", "id": item_id}]
        reply = await client.post(URL, json=body(input=items))
        assert (reply.status_code, reply.json()["error"]["param"]) == (404, "input[1].id")
        assert "Send the item itself" in reply.json()["error"]["message"]
    assert len(engine.requests) == 3


async def test_a_response_that_was_cut_is_continued_without_input(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.finish_reason = "length"
    cut = (await client.post(URL, json=body())).json()
    engine.finish_reason = "stop"
    whole = (await client.post(URL, json={"model": "tiny", "previous_response_id": cut["id"]})).json()
    assert prompt_of(engine).endswith("USER: What is it? ASSISTANT: A red circle.")
    await client.post(URL, json={"model": "tiny", "previous_response_id": whole["id"]})
    assert prompt_of(engine).endswith("</s> USER:  ASSISTANT:")


async def test_what_a_request_would_take_is_counted(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    request = body(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "What?"}, IMAGE]}],
        instructions="Be brief.",
        tools=[TOOL],
    )
    counted = (await client.post(f"{URL}/input_tokens", json=request)).json()
    assert engine.requests == []
    used = (await client.post(URL, json=request)).json()["usage"]["input_tokens"]
    assert counted == {"object": "response.input_tokens", "input_tokens": used}
    assert len(engine.requests[0].images) == 1
    refused = await client.post(f"{URL}/input_tokens", json={"model": "tiny"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


@pytest.mark.parametrize("path", ["compact", "resp_1/nothing", "msg_1", "input_items", "resp_1/input_items/msg_1"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
async def test_addresses_that_do_not_exist(client: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await client.request(method, f"{URL}/{path}", json={})).status_code == 404


class TestShortPaths:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"response_store_bytes": 100_000, "short_paths": True}

    async def test_stored_responses_have_them(self, client: httpx.AsyncClient) -> None:
        made = (await client.post("/responses", json=body())).json()
        assert (await client.get(f"/responses/{made['id']}")).json() == made
        assert (await client.get(f"/responses/{made['id']}/input_items")).json()["has_more"] is False
        assert (await client.post(f"/responses/{made['id']}/cancel")).status_code == 400
        assert (await client.post("/responses/input_tokens", json=body())).status_code == 200
        assert (await client.delete(f"/responses/{made['id']}")).status_code == 200


async def test_references_add_up_to_no_more_than_a_request_may_have(client: httpx.AsyncClient) -> None:
    parts = [{"type": "input_text", "text": "x"}] * 300
    made = (await client.post(URL, json=body(input=[{"role": "user", "content": parts}]))).json()
    item_id = (await listed(client, made["id"]))["data"][0]["id"]
    few = await client.post(f"{URL}/input_tokens", json=body(input=[{"type": "item_reference", "id": item_id}]))
    assert few.status_code == 200, few.text
    many = await client.post(f"{URL}/input_tokens", json=body(input=[{"type": "item_reference", "id": item_id}] * 100))
    assert many.status_code == 400
    assert "too many parts" in many.json()["error"]["message"]
