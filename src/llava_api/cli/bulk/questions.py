"""The question files of LLaVA's model_vqa_loader.py, model_vqa_science.py and model_vqa_mmbench.py."""

import math
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from llava_api.cli.bulk.images import ImageFolder, as_data_url
from llava_api.cli.bulk.job import ItemFailed, Line, parse
from llava_api.errors import StartupError
from llava_api.evaluation.files import numbered_lines
from llava_api.evaluation.mmbench import OPTION_LETTERS, has_text, options_of, rotated, table_rows

LETTER_PROMPTS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}


@dataclass(frozen=True, slots=True)
class Question:
    question_id: int | str
    text: str
    """What is asked."""
    prompt: str
    """What the answers file says was asked."""
    image: Callable[[], str] | None
    """Reads it and returns a ``data:`` URL. Raises ItemFailed."""
    fields: Line = field(default_factory=dict)
    """What the answers file has as well."""


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """JSONL, a JSON array of conversations (ScienceQA), or a table whose name ends in ``.tsv`` (MMBench)."""

    path: Path
    images: ImageFolder
    letter_prompt: str
    """What is asked for after the options of ScienceQA and MMBench, if anything."""
    all_rounds: bool
    """Ask MMBench's questions with the options in every rotation."""

    def entries(self) -> Iterator[tuple[int, bytes | Line]]:
        """What the file has for each question, with its line's or its own number. Raises StartupError."""
        if self.path.suffix == ".tsv":
            yield from table_rows(self.path, "index", "question", "A", "B", "image")
        elif not starts_with_bracket(self.path):
            yield from numbered_lines(self.path)
        else:
            try:
                yield from enumerate(orjson.loads(self.path.read_bytes()), start=1)
            except orjson.JSONDecodeError as error:
                raise StartupError(f"{self.path} is not valid JSON: {error}") from error

    def chunk(self, chunks: int, index: int) -> Iterator[tuple[int, bytes | Line]]:
        """The entries of one chunk, cut as LLaVA cuts: all have the same length but the last ones."""
        if chunks == 1:
            return self.entries()
        size = math.ceil(sum(1 for _ in self.entries()) / chunks)
        return islice(self.entries(), index * size, (index + 1) * size)

    def questions(self, entry: bytes | Line) -> Iterator[Question]:
        """One, or one for each rotation. Raises ItemFailed."""
        line = parse(entry) if isinstance(entry, bytes) else entry
        if not isinstance(line, dict):
            raise ItemFailed("invalid_json_line", "The entry is not a JSON object.")
        if self.path.suffix == ".tsv":
            yield from self.mmbench(line)
        elif "conversations" in line:
            yield self.scienceqa(line)
        else:
            question_id, text = line.get("question_id"), line.get("text")
            if not isinstance(question_id, int | str) or not isinstance(text, str):
                raise ItemFailed("missing_required_parameter", "question_id or text is missing.")
            yield Question(question_id, text, text, self.image(line))

    def scienceqa(self, line: Line) -> Question:
        try:
            question_id, text = line["id"], line["conversations"][0]["value"].replace("<image>", "").strip()
        except (LookupError, TypeError, AttributeError) as error:
            raise ItemFailed("missing_required_parameter", "id or the question is missing.") from error
        text = joined(text, self.letter_prompt)
        image = self.image(line)
        return Question(question_id, text, joined("<image>" if image else "", text), image)

    def image(self, line: Line) -> Callable[[], str] | None:
        """Some questions of a benchmark have none. Raises ItemFailed."""
        name: Any = line.get("image")
        if not isinstance(name, str | None):
            raise ItemFailed("invalid_type", "image must be the name of a file.")
        return partial(self.images.data_url, name) if name else None

    def mmbench(self, row: Line) -> Iterator[Question]:
        options = options_of(row)
        letters = OPTION_LETTERS[: len(options)]
        hint = row.get("hint", "")
        for turn in range(len(options) if self.all_rounds else 1):
            shown = rotated(options, turn)
            lines = [f"{letter}. {option}" for letter, option in zip(letters, shown, strict=True)]
            prompt = joined(hint if has_text(hint) else "", row["question"], *lines)
            fields: Line = {"round_id": turn, "options": shown, "option_char": rotated(letters, turn)}
            image = partial(decoded, row["index"], row["image"])
            yield Question(int(row["index"]), joined(prompt, self.letter_prompt), prompt, image, fields)


def starts_with_bracket(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def joined(*lines: str) -> str:
    return "\n".join(filter(None, lines))


def decoded(name: str, image: str) -> str:
    """Raises ItemFailed."""
    try:
        return as_data_url(b64decode(image), f"image of question {name}")
    except ValueError as error:
        raise ItemFailed("invalid_image", f"The image of question {name} is not base64.") from error
