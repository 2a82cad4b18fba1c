"""MMBench: its table, its rotations of the options, and its rules for finding the letter in an answer."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_api.errors import StartupError
from llava_api.evaluation.files import Sources, match
from llava_api.evaluation.result import Result, Score, percent

LETTERS = "ABCDE"
OPTION_LETTERS = "ABCD"
FORMS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""How a letter may be written as a word of the answer, in the order in which they are tried."""
CIRCULAR = 1_000_000
"""The rows of one question have the same index up to multiples of this."""


def table_rows(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row with the number of its last line; the image is base64. Raises StartupError."""
    csv.field_size_limit(2**30)  # for the images
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as lines:
            table = csv.DictReader(lines, delimiter="\t", restval="")
            if missing := [name for name in columns if name not in (table.fieldnames or ())]:
                without_answers = ": take a dev split, whose answers are public" if "answer" in missing else ""
                raise StartupError(f"{path}: no columns {', '.join(missing)}{without_answers}")
            try:
                for row in table:
                    int(row["index"])
                    yield table.line_num, row
            except (ValueError, csv.Error) as error:
                raise StartupError(f"{path} line {table.line_num}: no row of MMBench: {error}") from error
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error


def has_text(cell: str) -> bool:
    """Empty cells are ``nan`` in tables that pandas wrote."""
    return cell.lower() not in ("", "nan", "none")


def options_of(row: dict[str, str]) -> list[str]:
    """Up to the first empty one, as in LLaVA's ``model_vqa_mmbench.py``."""
    options = [row.get(letter, "") for letter in OPTION_LETTERS]
    return options[: next((n for n, option in enumerate(options) if not has_text(option)), len(options))]


def rotated(items: Sequence[str], turn: int) -> list[str]:
    """The options' order in a round of CircularEval."""
    return [*items[turn:], *items[:turn]]


def find_letter(text: str, options: Sequence[str]) -> str | None:
    """MMBench's rules before it asks ChatGPT: one letter as a word, else the only option that the answer has."""
    words = text.split()
    for form in FORMS:
        letters = [letter for letter in LETTERS if form.format(letter) in words]
        # In a sentence, A may be the article.
        if len(letters) == 1 and not (form == "{}" and letters == ["A"] and len(words) > 3):
            return letters[0]
    named = [letter for letter, option in zip(OPTION_LETTERS, options, strict=False) if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def mmbench(sources: Sources) -> Result:
    """MMBench's CircularEval, in which a question must be right with its options in every order; and each order.

    The rules are those of arXiv 2307.06281, in the form that lmms-eval ships (``tasks/mmbench/mmbench_evals.py``).
    The orders are the rounds of ``--all-rounds`` of LLaVA's ``model_vqa_mmbench.py`` and ``llava-api eval``, which
    rotate the options, or rows of the table whose indices differ by a million. LLaVA uploads its answers, and the
    server asks ChatGPT for the option if no rule finds it; here such an answer is wrong.
    """
    every_round = any(answer.round_id for answer in sources.answers)
    questions = {}
    for _, row in table_rows(sources.annotations, "index", "A", "B", "answer"):
        index, options = int(row["index"]), options_of(row)
        for turn in range(len(options) if every_round else 1):
            shown = rotated(options, turn)
            letters = dict(zip(rotated(OPTION_LETTERS[: len(options)], turn), OPTION_LETTERS, strict=False))
            questions[name_of(index, turn)] = (index % CIRCULAR, shown, letters.get(row["answer"]))
    matched = match(
        ((name_of(each.question_id, each.round_id), each) for each in sources.answers), questions, sources.annotations
    )
    circles: dict[int, list[bool]] = defaultdict(list)
    for name, (question, options, right) in questions.items():
        letter = find_letter(matched.texts.get(name, ""), options)
        circles[question].append(letter is not None and letter == right)
    scores = [
        Score("CircularEval", percent([all(right) for right in circles.values()]), (64.3, 67.7)),
        Score("each row", percent([right for circle in circles.values() for right in circle])),
    ]
    return Result(scores, len(questions), matched.missing, matched.unknown)


def name_of(index: int | str, turn: int) -> str:
    return f"{index} round {turn}" if turn else str(index)
