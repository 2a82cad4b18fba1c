"""Ollama's API with ``--ollama-api``: what comes back, what the engine was asked, and that every bound holds."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.test_chat import CHAT, RED, prompt_of
from tests.api.test_logprobs import ids, speak
from tests.support.metrics_page import read_page
from tests.support.ollama_shapes import check_line, lines_of
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

ASK, GENERATE = "/api/chat", "/api/generate"
PNG = RED.partition(",")[2]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at a place.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
CALL = '{"name": "look", "arguments": {"at": "the door"}}'
CALLED = {"function": {"name": "look", "arguments": {"at": "the door"}}}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"ollama_api": True}


def user(text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "tiny:latest", "messages": list(messages or (user(),)), "stream": False, **more}


async def test_a_whole_answer(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(ASK, json=body())
    answer = reply.json()
    check_line(answer, "message", last=True)
    assert reply.headers["content-type"] == "application/json"
    assert answer["model"] == "tiny:latest"
    assert answer["message"] == {"role": "assistant", "content": "A red circle."}
    assert (answer["done_reason"], answer["eval_count"], answer["load_duration"]) == ("stop", 3, 0)
    assert answer["prompt_eval_count"] == len(engine.requests[0].token_ids)
    assert answer["total_duration"] >= answer["prompt_eval_duration"] > 0


async def test_a_stream_unless_it_is_switched_off(client: httpx.AsyncClient) -> None:
    reply = await client.post(ASK, json={"model": "tiny", "messages": [user()]})
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = lines_of(reply.content)
    assert [line["message"]["content"] for line in lines] == ["A red", " circle", ".", ""]
    assert lines[-1]["eval_count"] == 3


async def test_one_question(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    wanted = {"model": "tiny", "prompt": "What is it?", "images": [PNG], "system": "Be brief."}
    lines = lines_of((await client.post(GENERATE, json=wanted)).content, "response")
    assert [line["response"] for line in lines] == ["A red", " circle", ".", ""]
    whole = (await client.post(GENERATE, json={**wanted, "stream": False})).json()
    check_line(whole, "response", last=True)
    assert whole["response"] == "A red circle."
    content = [{"type": "image_url", "image_url": {"url": RED}}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    await client.post(CHAT, json={"model": "tiny", "messages": messages})
    first, second, ours = engine.requests
    assert first.token_ids == second.token_ids == ours.token_ids
    assert whole["prompt_eval_count"] == len(ours.token_ids)


@pytest.mark.parametrize("image", [PNG, RED, PNG.rstrip("=")])
async def test_an_image_is_the_one_that_chat_shows(
    client: httpx.AsyncClient, engine: ScriptedEngine, image: str
) -> None:
    assert (await client.post(ASK, json=body(user("Look.", images=[image])))).status_code == 200
    content = [{"type": "image_url", "image_url": {"url": RED}}, {"type": "text", "text": "Look."}]
    await client.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": content}]})
    ours, chats = engine.requests
    assert ours.token_ids == chats.token_ids
    assert (ours.images[0].pixels == chats.images[0].pixels).all()


@pytest.mark.parametrize(
    ("path", "asked"), [(ASK, {"messages": []}), (ASK, {}), (GENERATE, {}), (GENERATE, {"prompt": ""})]
)
async def test_without_a_question_the_model_is_loaded(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str, asked: dict[str, Any]
) -> None:
    answer = (await client.post(path, json={"model": "tiny", "keep_alive": -1, **asked})).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    for nothing in (0, "0", "0s"):
        answer = (await client.post(path, json={"model": "tiny", "keep_alive": nothing, **asked})).json()
        assert answer["done_reason"] == "unload"
    assert answer["response" if path == GENERATE else "message"] in ("", {"role": "assistant", "content": ""})
    assert engine.requests == []


async def test_options(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    options = {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 30,
        "min_p": 0.1,
        "seed": 7,
        "num_predict": 12,
        "stop": ["\n", "USER"],
        "repeat_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "num_ctx": 8192,
        "mirostat": 1,
    }
    reply = await client.post(ASK, json=body(options=options, keep_alive="5m", think=False))
    assert reply.headers["x-llava-ignored"] == "options.num_ctx, options.mirostat"
    sampling = engine.requests[0].sampling
    found = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed)
    assert found == (0.3, 0.8, 30, 0.1, 7)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, 0.5, -0.5)
    assert sampling.stop[:2] == ("\n", "USER")
    assert engine.requests[0].max_tokens == 12


@pytest.mark.parametrize("num_predict", [None, 0, -1, -2, 10_000])
async def test_as_many_tokens_as_fit(
    client: httpx.AsyncClient, engine: ScriptedEngine, num_predict: int | None
) -> None:
    await client.post(ASK, json=body(options={"num_predict": num_predict, "seed": -1, "stop": "x"}))
    request = engine.requests[0]
    assert request.max_tokens == engine.max_model_len - len(request.token_ids)
    assert (request.sampling.seed, request.sampling.stop[0]) == (None, "x")


async def test_cut_at_the_length(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.finish_reason = "length"
    assert (await client.post(ASK, json=body())).json()["done_reason"] == "length"


@pytest.mark.parametrize("path", [ASK, GENERATE])
async def test_an_answer_in_json(client: httpx.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    engine.say('{"a": ', "1}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = body() if path == ASK else {"model": "tiny", "prompt": "Hello.", "stream": False}
    for form in ("json", schema):
        answer = (await client.post(path, json={**asked, "format": form})).json()
        assert json.loads(answer.get("response") or answer["message"]["content"]) == {"a": 1}
    for form in ("", None):
        await client.post(path, json={**asked, "format": form})
    grammars = [request.sampling.grammar for request in engine.requests]
    assert "integer" not in str(grammars[0])
    assert "integer" in str(grammars[1])
    assert grammars[2:] == [None, None]


async def test_log_probabilities(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, ("A ", ids("A ")), ("red", ids("red")))
    assert "logprobs" not in (await client.post(ASK, json=body())).json()
    whole = (await client.post(ASK, json=body(logprobs=True, top_logprobs=2))).json()
    assert "".join(token["token"] for token in whole["logprobs"]) == whole["message"]["content"] == "A red"
    assert [top["logprob"] for top in whole["logprobs"][0]["top_logprobs"]] == [-0.5, -1.5]
    lines = lines_of((await client.post(ASK, json=body(logprobs=True, top_logprobs=2, stream=True))).content)
    assert [token for line in lines for token in line.get("logprobs", ())] == whole["logprobs"]


class TestTools:
    async def test_calls_come_whole(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        engine.say(CALL[:12], CALL[12:40], CALL[40:], "\n" + CALL.replace("door", "sky"))
        lines = lines_of((await client.post(ASK, json=body(tools=[LOOK], stream=True))).content)
        called = [call for line in lines for call in line["message"].get("tool_calls", ())]
        assert [call["function"] for call in called] == [
            {"index": 0, "name": "look", "arguments": {"at": "the door"}},
            {"index": 1, "name": "look", "arguments": {"at": "the sky"}},
        ]
        assert lines[-1]["done_reason"] == "stop"
        whole = (await client.post(ASK, json=body(tools=[LOOK]))).json()
        assert [call["function"] for call in whole["message"]["tool_calls"]] == [call["function"] for call in called]
        assert whole["message"]["content"] == ""
        assert "Looks at a place." in prompt_of(engine)

    async def test_a_call_that_was_cut(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        engine.say(CALL[:45])
        engine.finish_reason = "length"
        answer = (await client.post(ASK, json=body(tools=[LOOK]))).json()
        assert answer["message"]["tool_calls"][0]["function"]["arguments"] == {"at": "the doo"}
        assert answer["done_reason"] == "length"

    async def test_words_instead(self, client: httpx.AsyncClient) -> None:
        lines = lines_of((await client.post(ASK, json=body(tools=[LOOK], stream=True))).content)
        assert "".join(line["message"]["content"] for line in lines) == "A red circle."

    @pytest.mark.parametrize("result", [{}, {"tool_name": "look"}, {"tool_call_id": "call_7"}])
    async def test_a_second_turn(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, result: dict[str, Any]
    ) -> None:
        said = {"role": "assistant", "content": "", "thinking": "", "tool_calls": [{"id": "call_7", **CALLED}]}
        answered = {"role": "tool", "content": "It is shut.", "images": [PNG], **result}
        assert (await client.post(ASK, json=body(user(), said, answered, tools=[LOOK]))).status_code == 200
        prompt = prompt_of(engine)
        assert CALL in prompt
        assert "look returned: It is shut." in prompt
        assert len(engine.requests[0].images) == 1

    async def test_each_result_belongs_to_a_call(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        """Home Assistant's messages name neither the function nor the call."""
        draw = {"function": {"name": "draw", "arguments": {}}}
        said = {"role": "assistant", "tool_calls": [CALLED, draw]}
        results = [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]
        assert (await client.post(ASK, json=body(user(), said, *results))).status_code == 200
        assert "look returned: a\ndraw returned: b" in prompt_of(engine)
        more = {"role": "tool", "content": "c"}
        assert (await client.post(ASK, json=body(user(), said, *results, more))).status_code == 200
        assert "draw returned: b\nA function returned: c" in prompt_of(engine)


async def test_an_answer_that_is_begun_is_continued(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    answer = (await client.post(ASK, json=body(user(), {"role": "assistant", "content": "It is"}))).json()
    assert answer["message"]["content"] == " A red circle."
    assert prompt_of(engine).endswith("ASSISTANT: It is")


@pytest.mark.parametrize(("parameters", "size"), [(7_063_427_072, "7.1B"), (2_345_678, "2.35M"), (None, "")])
async def test_the_number_of_parameters(
    app: FastAPI, client: httpx.AsyncClient, parameters: int | None, size: str
) -> None:
    services = app.state.services
    services.model = replace(services.model, parameters=parameters)
    shown = (await client.post("/api/show", json={"model": "tiny"})).json()
    for one in (shown, (await client.get("/api/tags")).json()["models"][0]):
        assert one["details"]["parameter_size"] == size


async def test_the_served_models(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["owner/tiny:latest", "tiny:latest", "birds:latest"]
    assert all(model["model"] == model["name"] for model in models)
    assert len({model["digest"] for model in models}) == 3
    assert models[0]["size"] > 1000
    assert models[2]["details"]["parent_model"] == "owner/tiny"
    running = (await client.get("/api/ps")).json()["models"]
    assert [model["name"] for model in running] == [model["name"] for model in models]
    assert running[0]["context_length"] == engine.max_model_len
    for name in ("tiny", "tiny:latest", "birds:latest"):
        assert (await client.post(ASK, json=body(model=name))).status_code == 200
        assert (await client.post("/api/show", json={"name": name})).status_code == 200
    shown = (await client.post("/api/show", json={"model": "tiny"})).json()
    assert "vision" in shown["capabilities"]
    assert shown["model_info"][f"{shown['model_info']['general.architecture']}.context_length"] == 2048
    for path in ("/api/show", ASK, GENERATE):
        refused = await client.post(path, json={"model": "mistral", "messages": [user()], "prompt": "Hello."})
        assert refused.status_code == 404


async def test_whether_it_runs(client: httpx.AsyncClient) -> None:
    reply = await client.get("/")
    assert (reply.status_code, reply.text) == (200, "Ollama is running")
    assert (await client.head("/")).status_code == 200
    version = (await client.get("/api/version")).json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 0)


@pytest.mark.parametrize(
    ("path", "wanted", "says"),
    [
        (ASK, {**body(), "model": None}, "model"),
        (ASK, body({"role": "wizard", "content": "x"}), "messages[0].role"),
        (ASK, body(user(images=["AAAA"])), "image"),
        (ASK, body(user(images=["file:///etc/passwd"])), "reads no local files"),
        (ASK, body(user("word " * 3000)), "maximum context length is 2048 tokens"),
        (ASK, body(options={"temperature": -1}), "options.temperature"),
        (ASK, body(format="yaml"), "format"),
        (ASK, body(format={"type": "object", "minProperties": 10**9}), "format"),
        (ASK, body(template="{{ .Prompt }}"), "template"),
        (ASK, body(structured_outputs={"choice": ["a"]}), "structured_outputs"),
        (ASK, body(image=PNG), "image"),
        (GENERATE, {"model": "tiny", "prompt": "x", "raw": True}, "raw"),
        (GENERATE, {"model": "tiny", "prompt": "x", "suffix": "y"}, "suffix"),
        (GENERATE, {"model": "tiny", "prompt": "x", "context": [1, 2]}, "/api/chat"),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str, wanted: dict[str, Any], says: str
) -> None:
    for stream in (False, True):
        reply = await client.post(path, json={**wanted, "stream": stream})
        assert reply.status_code == 400
        assert says in reply.json()["error"]
    assert engine.requests == []


async def test_the_outer_layers(client: httpx.AsyncClient) -> None:
    assert (await client.get(ASK)).status_code == 405
    assert (await client.post("/api/pull", json={"model": "llava"})).status_code == 404
    assert (await client.post(ASK, content=b"{")).status_code == 400
    assert (await client.post(ASK, json=body(user("a" * 400_000)))).status_code == 413


async def test_the_engine_fails(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.fail_at = 1
    assert (await client.post(ASK, json=body())).status_code == 500
    *lines, last = (await client.post(ASK, json=body(stream=True))).content.splitlines()
    assert json.loads(lines[0])["message"]["content"] == "A red"
    assert json.loads(last) == {"error": "The engine could not answer this request."}
    engine.fail_at = 0
    assert (await client.post(ASK, json=body(stream=True))).status_code == 500


async def test_lines_end_only_at_line_ends(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """The Python client's httpx ends lines at U+2028 and U+0085 too."""
    engine.say("a\u2028b\u0085c\n", "é")
    async with client.stream("POST", ASK, json=body(stream=True)) as reply:
        lines = [json.loads(line) async for line in reply.aiter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == "a\u2028b\u0085c\né"


async def test_a_silent_stream_is_kept_open(client: httpx.AsyncClient, app: FastAPI, engine: ScriptedEngine) -> None:
    services = app.state.services
    services.settings = services.settings.model_copy(
        update={"stream_head_seconds": 0.02, "stream_keep_alive_seconds": 0.02}
    )
    engine.pause_seconds = 0.1
    reply = await client.post(ASK, json=body(stream=True))
    assert reply.content.startswith(b"  ")
    assert len(lines_of(reply.content)) == 4


async def test_a_caller_that_leaves_frees_the_engine(
    client: httpx.AsyncClient, app: FastAPI, engine: ScriptedEngine
) -> None:
    engine.pause_seconds = 60
    asking = asyncio.create_task(client.post(ASK, json=body(user(images=[PNG]), stream=True)))
    await until(lambda: engine.unfinished == 1)
    asking.cancel()
    await until(lambda: engine.unfinished == 0 and app.state.services.memory.held_bytes == 0)
    assert app.state.services.admission.running == 0


async def test_metrics_name_the_model(client: httpx.AsyncClient) -> None:
    await client.post(ASK, json=body())
    page = read_page((await client.get("/metrics")).text)
    assert page.value("llava_api_completion_tokens_total", model="tiny", key="-") == 3


class TestKeys:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "keys").write_text("anne=sk-llava-for-anne-0123456789\n")
        return {"ollama_api": True, "api_key_file": [str(tmp_path / "keys")], "requests_per_minute": 2}

    async def test_every_address_needs_the_key(self, client: httpx.AsyncClient) -> None:
        key = {"authorization": "Bearer sk-llava-for-anne-0123456789"}
        for path in ("/api/tags", "/api/ps", "/api/version", "/"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=key)).status_code == 200
        for path in (ASK, GENERATE, "/api/show"):
            assert (await client.post(path, json=body())).status_code == 401
        statuses = [(await client.post(ASK, json=body(), headers=key)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


class TestOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {}

    async def test_it_is_off_by_default(self, client: httpx.AsyncClient) -> None:
        for path in ("/api/tags", "/api/version", "/api/ps", "/"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post(ASK, json=body())).status_code == 404
        assert "/api/chat" not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize("image", ["aGVsbG8=", "/tmp/x.png", "no base64!"])
async def test_a_wrong_image_is_refused_as_base64(client: httpx.AsyncClient, image: str) -> None:
    reply = await client.post(ASK, json=body(user(images=[image])))
    assert reply.status_code == 400
    assert "data:" not in reply.json()["error"]


async def test_an_address_that_does_not_exist(client: httpx.AsyncClient) -> None:
    reply = await client.post("/api/pull", json={"model": "tiny"})
    assert (reply.status_code, reply.json()) == (
        404,
        {"error": "There is nothing at this address; chat is at POST /api/chat."},
    )


async def test_an_image_in_another_field_is_told_where_it_belongs(client: httpx.AsyncClient) -> None:
    reply = await client.post(ASK, json=body(user(image=PNG)))
    assert (reply.status_code, reply.json()["error"]) == (
        400,
        "Unrecognized request argument supplied: messages[0].image. Send images as a list in images.",
    )
