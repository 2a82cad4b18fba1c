"""Questions with ten people's answers: VQAv2, TextVQA and VizWiz; and GQA, which has one right answer.

The accuracy of an answer is min(matching people / 3, 1), averaged over all choices of nine of the ten people
(https://visualqa.org/evaluation.html). Answers are normalised before. LLaVA does that with MMF's EvalAIAnswerProcessor
(https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/m4c_evaluator.py) and uploads the result, which the
evaluation server normalises once more.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from llava_api.errors import StartupError
from llava_api.evaluation.files import Answer, Sources, by_id, match, read_json
from llava_api.evaluation.result import Result, Score, by_group, overall, percent

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
"""Both scripts pass re.UNICODE, which is 32, as the count of periods to remove."""
COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(n) for n, word in enumerate(COUNTED.split())}
NUMBERS["none"] = "0"
ARTICLES = ("a", "an", "the")
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    full[:i] + full[i + 1 :]: full for full in CONTRACTED.split() for i, letter in enumerate(full) if letter == "'"
}
"""Contractions with one apostrophe left out, and an entry of both scripts that goes the other way."""


@cache
def without_punctuation(text: str) -> str:
    """A mark becomes a space, or nothing if it is beside a space somewhere or the text has a number like 1,000."""
    remove_all = COMMA_IN_NUMBER.search(text) is not None
    clean = text
    for mark in PUNCTUATION:
        clean = clean.replace(mark, "" if remove_all or f"{mark} " in text or f" {mark}" in text else " ")
    return PERIOD.sub("", clean, count=MOST_PERIODS)


def plain_words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def llava_answer(text: str) -> str:
    """What LLaVA uploads, and what TextVQA's answers are compared as."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def official_answer(text: str) -> str:
    """What the servers of VQAv2 and VizWiz compare of an answer."""
    return plain_words(without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """From 0 to 1. Leaving one person out who agrees leaves one match fewer."""
    matches = people.count(answer)
    agreeing, others = min(1.0, max(matches - 1, 0) / 3), min(1.0, matches / 3)
    return (matches * agreeing + (len(people) - matches) * others) / len(people)


@dataclass(slots=True)
class Given:
    """One person's answer: no model, because VQAv2's val split has two million of them."""

    answer: str


class VqaAnnotation(BaseModel):
    question_id: int | str
    answers: list[Given]
    answer_type: str = "other"


class VqaAnnotations(BaseModel):
    annotations: list[VqaAnnotation]


def vqav2(sources: Sources) -> Result:
    """VQAv2's accuracy, in all and by type of answer.

    LLaVA normalises each answer (``scripts/convert_vqav2_for_submission.py``); then the official script compares it
    (https://github.com/GT-Vision-Lab/VQA/blob/master/PythonEvaluationTools/vqaEvaluation/vqaEval.py), which removes
    punctuation from people's answers only if they differ.
    """
    annotations = read_json(sources.annotations, VqaAnnotations).annotations
    questions = {str(each.question_id): each for each in annotations}
    matched = match(by_id(sources.answers), questions, sources.annotations)
    groups: dict[str, list[float]] = defaultdict(list)
    for key, question in questions.items():
        people = [given.answer for given in question.answers]
        if len(set(people)) > 1:
            people = [without_punctuation(answer) for answer in people]
        groups[question.answer_type].append(people_agree(key, matched.texts, people, uploaded))
    return Result(
        [Score("accuracy", overall(groups), (78.5, 80.0)), *by_group(groups)],
        *(len(questions), matched.missing, matched.unknown),
        note="LLaVA's scores are for test-dev, whose answers are not public.",
    )


def uploaded(text: str) -> str:
    return official_answer(llava_answer(text))


def people_agree(key: Any, texts: dict[Any, str], people: list[str], normalised: Callable[[str], str]) -> float:
    if not people:
        raise StartupError(
            f"question {key} has no people's answers: the test splits' are not public, use the val split"
        )
    return soft_accuracy(normalised(texts[key]), people) if key in texts else 0.0


class VizWizAnnotation(BaseModel):
    image: str
    answers: list[Given] = []
    answer_type: str = "other"


def vizwiz(sources: Sources) -> Result:
    """VizWiz's accuracy, in all and by type of answer.

    LLaVA normalises each answer (``scripts/convert_vizwiz_for_submission.py``); then the official script compares it
    with people's answers as they are (vqaEval.py of https://vizwiz.org/tasks-and-datasets/vqa/). A question is known by
    its image; ``--question-file`` says which that is, unless the question ids are the images' names.
    """
    questions = {each.image: each for each in read_json(sources.annotations, list[VizWizAnnotation])}
    images = {}
    if sources.question_file is not None:
        images = {str(each.question_id): each.image for each in sources.questions("")}
    answers = ((images.get(key, key), answer) for key, answer in by_id(sources.answers))
    matched = match(answers, questions, sources.annotations)
    groups: dict[str, list[float]] = defaultdict(list)
    for image, question in questions.items():
        people = [given.answer for given in question.answers]
        groups[question.answer_type].append(people_agree(image, matched.texts, people, uploaded))
    return Result(
        [Score("accuracy", overall(groups), (50.0, 53.6)), *by_group(groups)],
        *(len(questions), matched.missing, matched.unknown),
        note="LLaVA's scores are for test-dev, whose answers are not public.",
    )


class TextVqaAnnotation(BaseModel):
    image_id: str
    question: str
    answers: list[str] = []


class TextVqaAnnotations(BaseModel):
    data: list[TextVqaAnnotation]


def textvqa(sources: Sources) -> Result:
    """TextVQA's accuracy on the val split, with both sides normalised as ``m4c_evaluator.py`` does.

    As in LLaVA's ``llava/eval/eval_textvqa.py``, an answer's id is that of the image, and its prompt has the question.
    """
    annotations = read_json(sources.annotations, TextVqaAnnotations).data
    questions = {(each.image_id, each.question.lower()): each for each in annotations}
    answers = (((str(answer.question_id), asked(answer)), answer) for answer in sources.answers)
    matched = match(answers, questions, sources.annotations)
    correct = [
        people_agree(key, matched.texts, [llava_answer(answer) for answer in question.answers], llava_answer)
        for key, question in questions.items()
    ]
    scores = [Score("accuracy", percent(correct), (58.2, 61.3))]
    return Result(scores, len(questions), matched.missing, matched.unknown)


def asked(answer: Answer) -> str:
    """The question of a prompt, in which a line of OCR tokens may be before or after it."""
    lines = answer.prompt.split("\n")
    if answer.prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", answer.prompt, re.DOTALL)
        if found is not None:
            return found[1].lower()
    elif len(lines) == 2 or (len(lines) == 3 and "Reference OCR token: " in answer.prompt):
        return lines[len(lines) == 3 and lines[0].startswith("Reference OCR token:")].lower()
    raise StartupError(f"{answer.place}: no question in the prompt: run LLaVA's llava_textvqa_val_v051_ocr.jsonl")


class GqaTypes(BaseModel):
    structural: str


class GqaQuestion(BaseModel):
    answer: str
    isBalanced: bool = True  # noqa: N815 - GQA's name
    types: GqaTypes


def gqa(sources: Sources) -> Result:
    """GQA's accuracy on its balanced questions, and on those to answer by yes, no or a choice, and on open ones.

    The formulas are those of eval.py (https://cs.stanford.edu/people/dorarad/gqa/evaluate.html), which compares whole
    texts. Before, LLaVA makes small letters and removes periods at the end (``scripts/convert_gqa_for_eval.py``).
    """
    read = read_json(sources.annotations, dict[str, GqaQuestion])
    questions = {key: question for key, question in read.items() if question.isBalanced}
    matched = match(by_id(sources.answers), questions, sources.annotations)
    groups: dict[str, list[float]] = defaultdict(list)
    for key, question in questions.items():
        correct = key in matched.texts and matched.texts[key].rstrip(".").lower() == question.answer
        groups["open" if question.types.structural == "query" else "binary"].append(correct)
    accuracy = Score("accuracy", overall(groups), (62.0, 63.3))
    return Result([accuracy, *by_group(groups)], len(questions), matched.missing, matched.unknown)
