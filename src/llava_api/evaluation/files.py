"""The files that scores are computed from: LLaVA's answers and questions, and the benchmarks' annotations.

Every fault of a file is a StartupError of one sentence that names the file and the place.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from llava_api.errors import StartupError

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


class Answer(BaseModel):
    """A line of the file that LLaVA's ``model_vqa_loader.py`` and ``llava-api eval`` write."""

    question_id: int | str
    text: str
    prompt: str = ""
    round_id: int = 0
    """Which rotation of MMBench's options was asked about."""
    place: str = ""
    """The file and the line, for complaints."""


class Question(BaseModel):
    """A line of LLaVA's question files, such as ``llava_pope_test.jsonl``."""

    question_id: int | str
    image: str = ""
    text: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a score is computed from."""

    answers: list[Answer]
    annotations: Path
    question_file: Path | None = None
    split: str = "test"
    """ScienceQA's split."""

    def questions(self, why: str) -> list[Question]:
        if self.question_file is None:
            raise StartupError(f"name the file of questions that was run by --question-file: {why}")
        return [question for _, question in read_lines(self.question_file, Question)]


@dataclass(frozen=True, slots=True)
class Matched(Generic[Key]):
    """Answers by the questions of the annotations."""

    texts: dict[Key, str]
    missing: list[str]
    """Questions without an answer."""
    unknown: list[str]
    """Answers to questions that the annotations do not have."""


def read_answers(paths: Iterable[Path]) -> list[Answer]:
    """The answers of one file, or of the chunks that ``--num-chunks`` made."""
    answers = []
    for path in paths:
        for number, answer in read_lines(path, Answer):
            answer.place = f"{path} line {number}"
            answers.append(answer)
    if not answers:
        raise StartupError(f"{', '.join(map(str, paths))}: there is no answer in it")
    return answers


def match(answers: Iterable[tuple[Key, Answer]], questions: Mapping[Key, object], annotations: Path) -> Matched[Key]:
    """Give each question its answer. Raises StartupError for a second answer, and if no answer fits."""
    found: dict[Key, Answer] = {}
    for key, answer in answers:
        if key in found:
            raise StartupError(
                f"{answer.place}: a second answer to question {named(key)}, which {found[key].place} has answered: "
                "remove one of them"
            )
        found[key] = answer
    if not questions.keys() & found.keys():
        first = next(iter(found.values()))
        raise StartupError(
            f"{annotations} has none of the questions that are answered, such as {first.question_id} ({first.place}): "
            "are both of the same benchmark and split?"
        )
    return Matched(
        {key: answer.text for key, answer in found.items() if key in questions},
        [named(key) for key in questions if key not in found],
        [named(key) for key in found if key not in questions],
    )


def by_id(answers: Iterable[Answer]) -> Iterator[tuple[str, Answer]]:
    """Ids as text: files have 12 and "12" for the same question."""
    return ((str(answer.question_id), answer) for answer in answers)


def named(key: Hashable) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def read_json(path: Path, form: type[T]) -> T:
    return parsed(read(path), TypeAdapter(form), str(path))


def read_lines(path: Path, form: type[T]) -> Iterator[tuple[int, T]]:
    adapter = TypeAdapter(form)
    for number, line in numbered_lines(path):
        yield number, parsed(line, adapter, f"{path} line {number}")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file with their numbers, which begin at 1; empty lines are left out."""
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error


def parsed(data: bytes, adapter: TypeAdapter[T], place: str) -> T:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StartupError(f"{place}: {f'{where}: ' if where else ''}{first['msg']}") from error
