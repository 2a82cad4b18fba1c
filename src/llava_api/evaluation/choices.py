"""Questions with options to choose from by letter: ScienceQA and SEED-Bench."""

import re
from collections import defaultdict

from pydantic import BaseModel, Field

from llava_api.errors import StartupError
from llava_api.evaluation.files import Sources, by_id, match, read_json
from llava_api.evaluation.result import Result, Score, by_group, overall, percent

SCIENCE_LETTERS = "ABCDE"
SCIENCE_SENTENCE = re.compile(r"The answer is ([A-Z]).")
"""As in LLaVA's script, whose period is any letter but the end of the line."""


class Problem(BaseModel):
    choices: list[str]
    answer: int = Field(ge=0, lt=len(SCIENCE_LETTERS))
    image: str | None = None


def science_letter(text: str) -> str | None:
    """The letter by itself, before a period and more text, or in the only sentence that says which answer it is."""
    if text in [*SCIENCE_LETTERS]:
        return text
    if text[1:3] == ". " and text[0] in SCIENCE_LETTERS:
        return text[0]
    found: list[str] = SCIENCE_SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def scienceqa(sources: Sources) -> Result:
    """ScienceQA's accuracy on the questions with an image, which LLaVA publishes, and on all.

    As LLaVA's ``llava/eval/eval_science_qa.py`` computes it from ``problems.json`` and ``pid_splits.json``
    (https://github.com/lupantech/ScienceQA). LLaVA recognises the questions with an image by their prompts, here
    ``problems.json`` says which they are: the same ones.
    """
    problems = read_json(sources.annotations / "problems.json", dict[str, Problem])
    splits = read_json(sources.annotations / "pid_splits.json", dict[str, list[str]])
    if sources.split not in splits:
        raise StartupError(
            f"{sources.annotations}/pid_splits.json has no split {sources.split}: name one of {[*splits]}"
        )
    questions = {key: problems[key] for key in splits[sources.split] if key in problems}
    matched = match(by_id(sources.answers), questions, sources.annotations)
    groups: dict[bool, list[float]] = {True: [], False: []}
    for key, problem in questions.items():
        letter = science_letter(matched.texts.get(key, ""))
        groups[problem.image is not None].append(letter == SCIENCE_LETTERS[problem.answer])
    scores = [
        Score("with image", percent(groups[True]), (66.8, 71.6)),
        Score("all", percent(groups[True] + groups[False])),
    ]
    return Result(scores, len(questions), matched.missing, matched.unknown)


class SeedQuestion(BaseModel):
    question_id: int | str
    answer: str
    data_type: str = "image"
    question_type_id: int


class SeedBench(BaseModel):
    questions: list[SeedQuestion]
    question_type: dict[str, int]


def seed(sources: Sources) -> Result:
    """SEED-Bench's accuracy (arXiv 2307.16125), in all, on images, on videos' frames, and by type of question.

    As LLaVA's ``scripts/convert_seed_for_submission.py``, which takes the answer as it is: a letter and nothing else.
    """
    bench = read_json(sources.annotations, SeedBench)
    questions = {str(question.question_id): question for question in bench.questions}
    matched = match(by_id(sources.answers), questions, sources.annotations)
    names = {number: name for name, number in bench.question_type.items()}
    groups: dict[str, list[float]] = defaultdict(list)
    media: dict[str, list[float]] = {"image": [], "video": []}
    for key, question in questions.items():
        correct = matched.texts.get(key) == question.answer
        media.setdefault(question.data_type, []).append(correct)
        groups[names.get(question.question_type_id, str(question.question_type_id))].append(correct)
    scores = [Score("accuracy", overall(media), (58.6, 61.6))]
    scores += [Score(name, percent(values)) for name, values in media.items() if values]
    return Result([*scores, *by_group(groups)], len(questions), matched.missing, matched.unknown)
