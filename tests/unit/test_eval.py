"""``llava-api eval``: LLaVA's question files, answered into LLaVA's answers files."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bulk import read_lines, run, write_image, write_lines
from tests.support.scripted_api import ScriptedApi, scripted_api


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with scripted_api() as api:
        yield api


def question(number: int | str, text: str = "Is it red?", **fields: Any) -> dict[str, Any]:
    return {"question_id": number, "image": "a.png", "text": text, "category": "default"} | fields


@pytest.fixture
def arguments(tmp_path: Path) -> list[str | Path]:
    write_image(tmp_path / "images" / "a.png")
    files = ["--question-file", tmp_path / "q.jsonl", "--answers-file", tmp_path / "answers" / "a.jsonl"]
    return ["eval", "--image-folder", tmp_path / "images", *files]


def test_answers_have_llava_s_fields_and_the_questions_order(
    api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]
) -> None:
    # As in MME's file, two questions about one image have the same question_id.
    questions = [question(3), question("code/1.png", "One?"), question("code/1.png", "Two?"), question(1)]
    write_lines(tmp_path / "q.jsonl", questions)
    code, said = run(api.base_url, *arguments, "--conv-mode", "vicuna_v1")
    assert code == 0
    assert said.startswith("--conv-mode vicuna_v1 has no effect: the server finds the checkpoint's prompt by itself")
    answers = read_lines(tmp_path / "answers" / "a.jsonl")
    names = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert [list(answer) for answer in answers] == [names] * 4
    assert len({answer.pop("answer_id") for answer in answers}) == 4
    assert answers == [
        {
            "question_id": question["question_id"],
            "prompt": question["text"],
            "text": f"A red circle. {question['text']}",
            "model_id": "tiny",
            "metadata": {},
        }
        for question in questions
    ]
    request = api.requests[0]
    image, text = request.pop("messages")[0]["content"]
    assert request == {"model": "tiny", "temperature": 0.0, "max_tokens": 128}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] in ("Is it red?", "One?", "Two?")


def test_chunks_are_cut_as_llava_cuts_them(api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]) -> None:
    write_lines(tmp_path / "q.jsonl", map(question, range(7)))
    answered = []
    for index in range(3):
        file = tmp_path / f"{index}.jsonl"
        chunk = ("--num-chunks", "3", "--chunk-idx", str(index), "--answers-file", file)
        assert run(api.base_url, *arguments, *chunk)[0] == 0
        answered.append([line["question_id"] for line in read_lines(file)])
    assert answered == [[0, 1, 2], [3, 4, 5], [6]]


def test_flags_of_llava_s_program_set_the_sampling(
    api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]
) -> None:
    write_lines(tmp_path / "q.jsonl", [question(1, image=None)])
    flags = ("--temperature", "0.2", "--top_p", "0.9", "--max_new_tokens", "8", "--model-path", "other")
    assert run(api.base_url, *arguments, *flags)[0] == 0
    message = {"role": "user", "content": "Is it red?"}
    sampling = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 8}
    assert api.requests == [{"model": "other", "messages": [message], **sampling}]


def asked(api: ScriptedApi) -> list[tuple[int, str]]:
    """How many images each request had, and its text."""
    found = []
    for request in api.requests:
        content = request["messages"][0]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found.append((len(parts) - 1, parts[-1]["text"]))
    return sorted(found)


LETTER = "Answer with the option's letter from the given choices directly."


def test_scienceqa_s_own_file(api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]) -> None:
    def entry(problem: str, text: str, **fields: str) -> dict[str, Any]:
        said = [{"from": "human", "value": text}, {"from": "gpt", "value": "The answer is A."}]
        return {"id": problem, "conversations": said} | fields

    file = tmp_path / "llava_test_CQM-A.json"
    entries = [entry("4", "Which?\nA. one\nB. two\n<image>", image="a.png"), entry("7", "Why?"), {"id": "8"}]
    file.write_text(json.dumps(entries, indent=2))
    assert run(api.base_url, *arguments, "--question-file", file, "--single-pred-prompt")[0] == 3
    texts = [f"Which?\nA. one\nB. two\n{LETTER}", f"Why?\n{LETTER}"]
    assert asked(api) == [(0, texts[1]), (1, texts[0])]
    answers = read_lines(tmp_path / "answers" / "a.jsonl")
    # LLaVA's script for the score knows the questions with an image by this.
    assert [(line["question_id"], line["prompt"]) for line in answers] == [
        ("4", f"<image>\n{texts[0]}"),
        ("7", texts[1]),
    ]
    (error,) = read_lines(tmp_path / "answers" / "a.jsonl.errors.jsonl")
    assert error["error"]["code"] == "missing_required_parameter"


def test_mmbench_s_own_table(api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]) -> None:
    image = b64encode((tmp_path / "images" / "a.png").read_bytes()).decode()
    rows = [
        ("index", "question", "hint", "A", "B", "C", "D", "answer", "image"),
        ("3", '"What is\nit?"', "Look.", "cat", "dog", "bird", "", "B", image),
        ("5", "Which?", "nan", "red", "blue", "", "", "A", "A"),
    ]
    table = tmp_path / "mmbench.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in rows))
    flags = ("--question-file", table, "--all-rounds", "--single-pred-prompt", "--lang", "cn")
    assert run(api.base_url, *arguments, *flags)[0] == 3
    shown = [("cat", "dog", "bird"), ("dog", "bird", "cat"), ("bird", "cat", "dog")]
    prompts = [f"Look.\nWhat is\nit?\nA. {a}\nB. {b}\nC. {c}" for a, b, c in shown]
    assert asked(api) == sorted((1, f"{prompt}\n请直接回答选项字母。") for prompt in prompts)
    answers = read_lines(tmp_path / "answers" / "a.jsonl")
    assert [(line["question_id"], line["round_id"], line["prompt"]) for line in answers] == [
        (3, turn, prompt) for turn, prompt in enumerate(prompts)
    ]
    assert (answers[1]["options"], answers[1]["option_char"]) == (["dog", "bird", "cat"], ["B", "C", "A"])
    errors = read_lines(tmp_path / "answers" / "a.jsonl.errors.jsonl")
    assert [line["error"]["message"] for line in errors] == ["The image of question 5 is not base64."] * 2
    # Without --all-rounds, each question once; what is there already is not asked again.
    first = tmp_path / "first.jsonl"
    assert run(api.base_url, *arguments, "--question-file", table, "--answers-file", first)[0] == 3
    assert [line["round_id"] for line in read_lines(first)] == [0]


def test_a_question_without_its_image_fails_by_itself(
    api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]
) -> None:
    write_lines(tmp_path / "q.jsonl", [question(1), question(2, image="b.png"), question(3, image="../q.jsonl"), {}])
    assert run(api.base_url, *arguments)[0] == 3
    answers = tmp_path / "answers" / "a.jsonl"
    assert [line["question_id"] for line in read_lines(answers)] == [1]
    errors = read_lines(answers.with_name("a.jsonl.errors.jsonl"))
    assert sorted((str(line["custom_id"]), line["error"]["code"]) for line in errors) == [
        ("2", "image_not_found"),
        ("3", "image_not_found"),
        ("None", "missing_required_parameter"),
    ]


def test_mistakes_are_one_line(api: ScriptedApi, tmp_path: Path, arguments: list[str | Path]) -> None:
    assert run(api.base_url, "eval")[1].startswith("llava-api: eval needs --question-file and --answers-file")
    wrong = ("--num-chunks", "2", "--chunk-idx", "2")
    assert run(api.base_url, *arguments, *wrong) == (1, "llava-api: --chunk-idx must be from 0 to 1\n")
    code, said = run(api.base_url, *arguments)
    assert (code, said) == (1, f"llava-api: --question-file: there is no file {tmp_path / 'q.jsonl'}\n")
