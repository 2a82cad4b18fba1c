"""``llm``, the command and its library, with chat and Responses: images, streams, schemas, tools, conversations."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llm
import pytest
from asked import CLIENTS, QUESTIONS, STAR, Question, Shape, check_star

KINDS = ["chat", "responses"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, model: str) -> Path:
    """The user's own folder, with both models in the file that the documentation names."""
    models = [
        {
            "model_id": kind,
            "model_name": model,
            "api_base": base_url,
            "vision": True,
            "supports_schema": True,
            "supports_tools": True,
            "responses": kind == "responses",
        }
        for kind in KINDS
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, folder: Path) -> Any:
    return llm.get_model(request.param)


def shown(question: Question) -> list[llm.Attachment]:
    return [llm.Attachment(path=str(question.picture))]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(opened: Any, question: Question) -> None:
    response = opened.prompt(question.text, attachments=shown(question), stream=False)
    assert response.text() == question.answer
    assert response.usage().output > 1


def test_stream(opened: Any) -> None:
    pieces = list(opened.prompt(STAR.text, attachments=shown(STAR)))
    assert "".join(pieces) == STAR.answer
    assert len(pieces) > 1


def test_answers_async_and_at_once(folder: Path) -> None:
    async def ask() -> list[str]:
        model = llm.get_async_model("chat")
        asked = [model.prompt(question.text, attachments=shown(question)).text() for question in QUESTIONS]
        return list(await asyncio.gather(*asked))

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_a_conversation(opened: Any) -> None:
    conversation = opened.conversation()
    assert conversation.prompt(STAR.text, attachments=shown(STAR), system="Be brief.").text() == STAR.answer
    assert conversation.prompt(QUESTIONS[3].text, attachments=shown(QUESTIONS[3])).text()


def test_structured_output(opened: Any) -> None:
    response = opened.prompt(STAR.text, attachments=shown(STAR), schema=Shape, stream=False)
    check_star(Shape.model_validate_json(response.text()))


def test_tools_that_the_model_may_call(opened: Any) -> None:
    """The client cannot make the model call one, so it may answer in words."""

    def paint(colour: str) -> str:
        """Paint the shape in another colour."""
        return f"It is {colour} now."

    conversation = opened.conversation(tools=[paint], chain_limit=3)
    chain = conversation.chain(STAR.text, attachments=shown(STAR))
    assert chain.text()


def test_the_command(folder: Path) -> None:
    picture = str(STAR.picture)
    assert command("-m", "chat", STAR.text, "-a", picture) == STAR.answer
    assert command("-c", QUESTIONS[3].text, "-a", str(QUESTIONS[3].picture))
    schema = json.dumps(Shape.model_json_schema())
    check_star(Shape.model_validate_json(command("-m", "chat", STAR.text, "-a", picture, "--schema", schema)))
    (logged, *_) = json.loads(command("logs", "--json", "-n", "1"))
    assert logged["output_tokens"] > 1


def test_the_command_reports_a_refusal(folder: Path) -> None:
    broken = folder / "broken.png"
    broken.write_bytes((CLIENTS / "pictures" / "blue-star.png").read_bytes()[:100])
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "chat", "What is it?", "--at", str(broken), "image/png"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ,
    )
    assert done.returncode != 0
    assert "image" in done.stderr
