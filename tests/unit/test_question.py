"""What the router reads of a body: never other than what the server would read."""

import json
from typing import Any

import pytest

from llava_api.errors import InvalidRequest
from llava_api.routing.question import Question, read_question

IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 400
OTHER = "data:image/png;base64," + "iVBORw0KGgp" * 400


def read(*turns: Any, **fields: Any) -> Question:
    messages = [{"role": role, "content": content} for role, content in turns]
    # As openai's client writes it: the model's name comes last.
    return read_question(json.dumps({"messages": messages, **fields, "model": "tiny"}).encode(), False)


def shown(url: str, text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize(
    "text",
    [
        f'He wrote "{IMAGE}" and no more.',
        f'"{IMAGE}',
        f'\\"{IMAGE}\\", "model": "other"',
        f'"model": "other", "x": "{IMAGE}"',
    ],
)
def test_a_text_with_an_image_in_it_hides_no_model(text: str) -> None:
    found = read(("user", shown(IMAGE, text)), stream=True)
    assert (found.model, found.streamed) == ("tiny", True)


def test_the_first_users_image_is_what_requests_have_in_common() -> None:
    first = read(("system", "Be brief."), ("user", shown(IMAGE, "What is it?"))).affinity
    assert first == read(("user", shown(IMAGE, "How many?")), ("assistant", "Two."), ("user", "Why?")).affinity
    assert (
        first == read(("user", shown(IMAGE, "And?")), ("assistant", "Yes."), ("user", shown(OTHER, "This?"))).affinity
    )
    assert first != read(("user", shown(OTHER, "What is it?"))).affinity
    far = "https://example.com/a.png"
    assert read(("user", shown(far, "a"))).affinity == read(("user", shown(far, "b"))).affinity != first


def test_without_an_image_it_is_the_conversations_beginning() -> None:
    first = read(("system", "Be brief."), ("user", "Hello.")).affinity
    assert first == read(("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "Why?")).affinity
    assert first != read(("system", "Be brief."), ("user", "Good day.")).affinity
    assert first != read(("system", "Be long."), ("user", "Hello.")).affinity
    prompts = [{"model": "tiny", name: text} for name in ("prompt", "input") for text in ("a", "b")]
    assert len({read_question(json.dumps(body).encode(), False).affinity for body in prompts}) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": ', b'{"a":' * 30_000])
def test_what_the_server_would_refuse_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_question(body, False)
