"""LiteLLM's proxy in front of this server, asked by the clients openai and anthropic: chat, Messages and Responses."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from openai import OpenAI

KEY = "sk-the-proxys-own"
START_SECONDS = 120
PAINT: Any = {"type": "function", "function": {"name": "paint", "parameters": Paint.model_json_schema()}}


@pytest.fixture(scope="module")
def proxy(base_url: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy's address. It has the model twice, by its providers openai and anthropic."""
    folder = tmp_path_factory.mktemp("proxy")
    addresses = {"openai": base_url, "anthropic": base_url.removesuffix("/v1")}
    models = [
        {
            "model_name": f"by-{provider}",
            "litellm_params": {"model": f"{provider}/{model}", "api_base": address, "api_key": "none"},
        }
        for provider, address in addresses.items()
    ]
    settings = {"model_list": models, "general_settings": {"master_key": KEY}, "litellm_settings": {"num_retries": 0}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml", "--port", str(port)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--telemetry", "False"],
            cwd=folder,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", process, folder / "log.txt")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health/liveliness", timeout=2)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text(), pytrace=False)


@pytest.fixture(params=["by-openai", "by-anthropic"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(proxy: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{proxy}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
def messages_client(proxy: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=proxy, api_key=KEY, max_retries=0) as opened:
        yield opened


def chat(question: Question) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": question.url}}
    return [{"role": "user", "content": [{"type": "text", "text": question.text}, image]}]


def blocks(question: Question) -> list[Any]:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": question.base64}}
    return [{"role": "user", "content": [image, {"type": "text", "text": question.text}]}]


def items(question: Question) -> list[Any]:
    image = {"type": "input_image", "image_url": question.url, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": question.text}, image]}]


class TestChat:
    @pytest.mark.parametrize("question", QUESTIONS, ids=str)
    def test_answers(self, client: OpenAI, name: str, question: Question) -> None:
        reply = client.chat.completions.create(model=name, messages=chat(question))
        assert reply.choices[0].message.content == question.answer
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 1

    def test_stream(self, client: OpenAI, name: str) -> None:
        chunks = client.chat.completions.create(
            model=name, messages=chat(STAR), stream=True, stream_options={"include_usage": True}
        )
        received = list(chunks)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in received if chunk.choices) == STAR.answer
        assert received[-1].usage is not None

    def test_structured_output(self, client: OpenAI, name: str) -> None:
        reply = client.chat.completions.parse(model=name, messages=chat(STAR), response_format=Shape)
        check_star(reply.choices[0].message.parsed)

    def test_a_tool_call_and_its_result(self, client: OpenAI, name: str) -> None:
        first = client.chat.completions.create(
            model=name, messages=chat(STAR), tools=[PAINT], tool_choice="required", max_tokens=256
        )
        calls = first.choices[0].message.tool_calls
        assert calls
        for call in calls:
            assert call.type == "function"
            Paint.model_validate_json(call.function.arguments)
        results = [{"role": "tool", "tool_call_id": call.id, "content": "It is dry."} for call in calls]
        conversation: list[Any] = [*chat(STAR), first.choices[0].message.model_dump(exclude_none=True), *results]
        second = client.chat.completions.create(model=name, messages=conversation, tools=[PAINT], max_tokens=64)
        assert second.choices[0].message.content or second.choices[0].message.tool_calls

    def test_a_refusal(self, client: OpenAI, name: str) -> None:
        broken = chat(STAR)
        broken[0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=name, messages=broken)


class TestMessages:
    @pytest.mark.parametrize("question", QUESTIONS, ids=str)
    def test_answers(self, messages_client: Anthropic, name: str, question: Question) -> None:
        message = messages_client.messages.create(model=name, max_tokens=64, messages=blocks(question))
        assert [block.text for block in message.content if block.type == "text"] == [question.answer]
        assert message.usage.output_tokens > 1

    def test_stream(self, messages_client: Anthropic, name: str) -> None:
        with messages_client.messages.stream(model=name, max_tokens=64, messages=blocks(STAR)) as stream:
            assert "".join(stream.text_stream) == STAR.answer

    def test_a_tool_call_and_its_result(self, messages_client: Anthropic, name: str) -> None:
        tool: Any = {"name": "paint", "input_schema": Paint.model_json_schema()}
        first = messages_client.messages.create(
            model=name, max_tokens=256, messages=blocks(STAR), tools=[tool], tool_choice={"type": "any"}
        )
        calls = [block for block in first.content if block.type == "tool_use"]
        assert calls
        for call in calls:
            Paint.model_validate(call.input)
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "It is dry."} for call in calls]
        used = [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in calls]
        conversation: list[Any] = [
            *blocks(STAR),
            {"role": "assistant", "content": used},
            {"role": "user", "content": results},
        ]
        second = messages_client.messages.create(model=name, max_tokens=64, messages=conversation, tools=[tool])
        assert second.content

    def test_a_refusal(self, messages_client: Anthropic, name: str) -> None:
        broken = blocks(STAR)
        broken[0]["content"][0]["source"]["data"] = "AAAA"
        with pytest.raises(anthropic.APIStatusError) as refused:
            messages_client.messages.create(model=name, max_tokens=9, messages=broken)
        assert refused.value.status_code == 400


class TestResponses:
    @pytest.mark.parametrize("question", QUESTIONS, ids=str)
    def test_answers(self, client: OpenAI, name: str, question: Question) -> None:
        assert client.responses.create(model=name, input=items(question)).output_text == question.answer

    def test_stream(self, client: OpenAI, name: str) -> None:
        with client.responses.create(model=name, input=items(STAR), stream=True) as events:
            texts = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(texts) == STAR.answer

    def test_structured_output(self, client: OpenAI) -> None:
        response = client.responses.parse(model="by-openai", input=items(STAR), text_format=Shape)
        check_star(response.output_parsed)
