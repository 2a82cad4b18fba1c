"""The ``openai`` client: chat about images, streams, tools, the Responses API, files and batches, errors, retries."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from asked import QUESTIONS, STAR, Paint, Question, Remark, Shape, check_star
from openai import AsyncOpenAI, OpenAI

TEXT_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: Hello ASSISTANT:"
)
BATCH_SECONDS = 60


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def messages(question: Question) -> Any:
    image = {"type": "image_url", "image_url": {"url": question.url}}
    return [{"role": "user", "content": [{"type": "text", "text": question.text}, image]}]


def response_input(question: Question) -> Any:
    image = {"type": "input_image", "image_url": question.url, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": question.text}, image]}]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(client: OpenAI, model: str, question: Question) -> None:
    reply = client.chat.completions.create(model=model, messages=messages(question))
    assert reply.choices[0].message.content == question.answer


def test_answers_async_and_at_once(base_url: str, model: str) -> None:
    async def ask() -> list[str | None]:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            create = client.chat.completions.create
            replies = await asyncio.gather(*(create(model=model, messages=messages(item)) for item in QUESTIONS))
        return [reply.choices[0].message.content for reply in replies]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(client: OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model, messages=messages(STAR), stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == STAR.answer
    assert len(pieces) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


def test_stream_helper(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=messages(STAR)) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == STAR.answer
    assert final.choices[0].message.content == STAR.answer
    assert final.choices[0].finish_reason == "stop"


def test_stream_helper_async(base_url: str, model: str) -> None:
    async def ask() -> str | None:
        async with (
            AsyncOpenAI(base_url=base_url, api_key="none") as client,
            client.chat.completions.stream(model=model, messages=messages(STAR)) as stream,
        ):
            await stream.until_done()
            return (await stream.get_final_completion()).choices[0].message.content

    assert asyncio.run(ask()) == STAR.answer


def test_raw_response(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=messages(STAR))
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id
    assert raw.parse().choices[0].message.content == STAR.answer


def test_parse(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.parse(model=model, messages=messages(STAR), response_format=Shape)
    check_star(reply.choices[0].message.parsed)


def test_any_text_stays_json(client: OpenAI, model: str) -> None:
    """At the highest temperature a tiny model writes anything that it is let."""
    reply = client.chat.completions.parse(
        model=model, messages=messages(STAR), response_format=Remark, temperature=2, n=8, seed=1
    )
    assert all(isinstance(choice.message.parsed, Remark) for choice in reply.choices)


def test_parse_while_streaming(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=messages(STAR), response_format=Shape) as stream:
        final = stream.get_final_completion()
    check_star(final.choices[0].message.parsed)


def test_json_object(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=messages(STAR), response_format={"type": "json_object"}, max_tokens=300
    )
    choice = reply.choices[0]
    # A tiny model may not find the end of a free object; what it does end has to be one.
    assert (choice.message.content or "").lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


def test_tool_call_and_its_result(client: OpenAI, model: str) -> None:
    asked = messages(STAR)
    tools = [openai.pydantic_function_tool(Paint, name="paint")]
    reply = client.chat.completions.parse(model=model, messages=asked, tools=tools, tool_choice="required")
    assert reply.choices[0].finish_reason == "tool_calls"
    calls = reply.choices[0].message.tool_calls or []
    assert {call.function.name for call in calls} == {"paint"}
    assert all(isinstance(call.function.parsed_arguments, Paint) for call in calls)
    history: Any = [
        *asked,
        reply.choices[0].message,
        *({"role": "tool", "tool_call_id": call.id, "content": "painted"} for call in calls),
        {"role": "user", "content": "What color is the star?"},
    ]
    after = client.chat.completions.create(model=model, messages=history, tools=tools, tool_choice="none")
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert (after.choices[0].message.content or "").startswith("Blue.")
    assert not after.choices[0].message.tool_calls


def test_named_tool_while_streaming(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model,
        messages=messages(STAR),
        tools=[openai.pydantic_function_tool(Paint, name="paint")],
        tool_choice={"type": "function", "function": {"name": "paint"}},
        parallel_tool_calls=False,
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == "paint"
    assert isinstance(call.function.parsed_arguments, Paint)


def test_several_choices(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=messages(STAR), n=3)
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [
        (index, STAR.answer) for index in range(3)
    ]


def test_logprobs(client: OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=messages(STAR), logprobs=True, top_logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == STAR.answer
    # The model is sure of what it sees.
    assert all(token.logprob > -1 and len(token.top_logprobs) == 2 for token in tokens)


def test_text_completion(client: OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt=TEXT_PROMPT, temperature=0, max_tokens=64)
    assert reply.choices[0].text.strip().startswith("I am a tiny LLaVA demo model")


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_responses(client: OpenAI, model: str, question: Question) -> None:
    reply = client.responses.create(model=model, input=response_input(question), store=False)
    assert reply.status == "completed"
    assert reply.output_text == question.answer


def test_responses_stream(client: OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input=response_input(STAR), store=False) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == STAR.answer
    assert final.output_text == STAR.answer


def test_responses_parse(client: OpenAI, model: str) -> None:
    reply = client.responses.parse(model=model, input=response_input(STAR), text_format=Shape, store=False)
    check_star(reply.output_parsed)


def test_responses_tool_call_and_its_result(client: OpenAI, model: str) -> None:
    asked = response_input(STAR)
    tools: Any = [openai.pydantic_function_tool(Paint, name="paint")]
    reply = client.responses.parse(model=model, input=asked, tools=tools, tool_choice="required", store=False)
    calls = [item for item in reply.output if item.type == "function_call"]
    assert {call.name for call in calls} == {"paint"}
    assert all(isinstance(call.parsed_arguments, Paint) for call in calls)
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "painted"} for call in calls]
    history: Any = [*asked, *reply.output, *results, {"role": "user", "content": "What color is the star?"}]
    after = client.responses.create(model=model, input=history, store=False)
    assert after.output_text.startswith("Blue.")


def test_an_uploaded_image_is_named_by_its_id(client: OpenAI, model: str) -> None:
    image = client.files.create(file=STAR.picture, purpose="vision")
    assert client.files.wait_for_processing(image.id).filename == STAR.picture.name
    asked: Any = messages(STAR)
    asked[0]["content"][1] = {"type": "file", "file": {"file_id": image.id}}
    reply = client.chat.completions.create(model=model, messages=asked)
    assert reply.choices[0].message.content == STAR.answer
    asked = response_input(STAR)
    asked[0]["content"][1] = {"type": "input_image", "file_id": image.id, "detail": "auto"}
    assert client.responses.create(model=model, input=asked, store=False).output_text == STAR.answer
    assert image.id in [file.id for file in client.files.list(purpose="vision", limit=1)]
    assert client.files.content(image.id).read() == STAR.picture.read_bytes()
    assert client.files.delete(image.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(image.id)


def batch_lines(model: str) -> bytes:
    """Each question, and one that the server refuses."""
    bodies = {question.text: {"model": model, "messages": messages(question)} for question in QUESTIONS}
    bodies["refused"] = {"model": "no-such-model", "messages": messages(STAR)}
    request = {"method": "POST", "url": "/v1/chat/completions"}
    rows = [{"custom_id": name, **request, "body": body} for name, body in bodies.items()]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_batch(client: OpenAI, model: str) -> None:
    file = client.files.create(file=("requests.jsonl", batch_lines(model)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "tests"}
    )
    give_up_at = time.monotonic() + BATCH_SECONDS
    while batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < give_up_at:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.metadata) == ("completed", {"of": "tests"})
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(QUESTIONS) + 1, len(QUESTIONS), 1)
    assert batch.output_file_id is not None
    answers = {}
    for text in client.files.content(batch.output_file_id).iter_lines():
        line = json.loads(text)
        answers[line["custom_id"]] = line["response"]["body"]["choices"][0]["message"]["content"]
    assert answers == {question.text: question.answer for question in QUESTIONS}
    assert batch.error_file_id is not None
    refused = json.loads(client.files.content(batch.error_file_id).text)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("refused", 404)
    assert batch.id in [each.id for each in client.batches.list(limit=1)]


def test_a_batch_is_cancelled(client: OpenAI, model: str) -> None:
    row = {"method": "POST", "url": "/v1/chat/completions", "body": {"model": model, "messages": messages(STAR)}}
    lines = "".join(json.dumps(row | {"custom_id": str(number)}) + "\n" for number in range(1000)).encode()
    file = client.files.create(file=("requests.jsonl", lines), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = client.batches.cancel(batch.id)
    give_up_at = time.monotonic() + BATCH_SECONDS
    while batch.status == "cancelling" and time.monotonic() < give_up_at:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "cancelled"
    client.files.delete(file.id)


def test_models(client: OpenAI, model: str) -> None:
    assert model in [entry.id for entry in client.models.list()]


def test_errors_have_the_clients_classes(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=messages(STAR))
    broken: Any = messages(STAR)
    broken[0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=broken)
    assert refused.value.param == "messages[0].content[1].image_url"


@pytest.fixture
def stumbling_gateway(base_url: str) -> Iterator[tuple[str, list[int]]]:
    """(its base URL, the statuses it gave): it fails once with 503, then sends the caller on to the server."""
    statuses: list[int] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            statuses.append(307 if statuses else 503)
            self.send_response(statuses[-1])
            self.send_header("Retry-After-Ms", "1")
            self.send_header("Location", base_url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{gateway.server_address[1]}", statuses
        gateway.shutdown()


def test_a_retry_is_answered(stumbling_gateway: tuple[str, list[int]], model: str) -> None:
    url, statuses = stumbling_gateway
    with OpenAI(base_url=url, api_key="none", max_retries=1) as client:
        reply = client.chat.completions.create(model=model, messages=messages(STAR))
    assert reply.choices[0].message.content == STAR.answer
    assert statuses == [503, 307]
