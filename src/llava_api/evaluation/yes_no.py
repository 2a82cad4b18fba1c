"""Questions to answer by yes or no: POPE and MME."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from llava_api.errors import StartupError
from llava_api.evaluation.files import Answer, Sources, by_id, match, read, read_lines
from llava_api.evaluation.result import Result, Score, mean

MME_TASKS = {
    "perception": (
        *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
POPE_PREFIX = "coco_pope_"
YesNo = Literal["yes", "no"]


class PopeLabel(BaseModel):
    question_id: int | str
    text: str
    label: YesNo


def pope_says_yes(text: str) -> bool:
    """All is yes that does not have "No", "no" or "not" as a word of its first sentence."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & {*words}


def pope(sources: Sources) -> Result:
    """Accuracy, precision, recall, F1 and the share of yes, by split. "yes" is the positive class.

    The formulas are POPE's (arXiv 2305.10355, https://github.com/AoiDragon/POPE/blob/main/evaluate.py), and answers are
    read as LLaVA's ``llava/eval/eval_pope.py`` does. LLaVA publishes the mean of three F1. Its script pairs the n-th
    answer of a split with the n-th label; here it is the n-th question, so that a missing answer moves no other.
    """
    labels = pope_labels(sources)
    questions = {key: label for split in labels.values() for key, label in split.items()}
    matched = match(by_id(sources.answers), questions, sources.annotations)
    scores, f1 = [], []
    for split, labelled in labels.items():
        # A missing answer counts as the wrong one.
        said = {
            key: pope_says_yes(matched.texts[key]) if key in matched.texts else label != "yes"
            for key, label in labelled.items()
        }
        found = sum(said[key] for key, label in labelled.items() if label == "yes")
        yes, positives = sum(said.values()), [*labelled.values()].count("yes")
        right = sum(said[key] == (label == "yes") for key, label in labelled.items())
        # F1 is 2 PR / (P + R), which is this without a division by zero.
        f1.append(ratio(2 * found, yes + positives))
        scores += [
            Score(f"{split}: accuracy", ratio(right, len(said))),
            Score(f"{split}: precision", ratio(found, yes)),
            Score(f"{split}: recall", ratio(found, positives)),
            Score(f"{split}: F1", f1[-1]),
            Score(f"{split}: yes ratio", ratio(yes, len(said))),
        ]
    whole = {"random", "popular", "adversarial"} <= labels.keys()
    scores.append(Score("mean F1", mean(f1), (85.9, 85.9) if whole else None))
    return Result(scores, len(questions), matched.missing, matched.unknown)


def ratio(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def pope_labels(sources: Sources) -> dict[str, dict[str, YesNo]]:
    """Of each split, the right answers by question ids."""
    if sources.annotations.is_file():
        split = sources.annotations.stem.removeprefix(POPE_PREFIX)
        lines = [line for _, line in read_lines(sources.annotations, PopeLabel)]
        if sources.question_file is None:
            return {split: {str(line.question_id): line.label for line in lines}}
        files = [sources.annotations]
    else:
        files = sorted(sources.annotations.glob(f"{POPE_PREFIX}*.json"))
    if not files:
        raise StartupError(
            f"{sources.annotations}: there is no {POPE_PREFIX}random.json, …popular or …adversarial in it"
        )
    questions = sources.questions("it says which split a question is of, as LLaVA's llava_pope_test.jsonl does")
    labels = {}
    for file in files:
        split = file.stem.removeprefix(POPE_PREFIX)
        asked = [question for question in questions if question.category == split]
        lines = [line for _, line in read_lines(file, PopeLabel)]
        if len(asked) != len(lines) or not all(
            q.text.startswith(line.text) for q, line in zip(asked, lines, strict=True)
        ):
            raise StartupError(
                f"{file} has not the {len(asked)} questions of category {split} of {sources.question_file}"
                " in this order"
            )
        labels[split] = {str(q.question_id): line.label for q, line in zip(asked, lines, strict=True)}
    return labels


def mme_answer(text: str) -> str:
    """Yes, no or other, from the first four letters."""
    beginning = text.lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def mme_question(text: str) -> str:
    """A question without what LLaVA and MME add to it."""
    for added in ("Answer the question using a single word or phrase.", "Please answer yes or no."):
        text = text.replace(added, "")
    return " ".join(text.split())


def mme(sources: Sources) -> Result:
    """MME's points: of each task the accuracy and the accuracy+, in which both questions of an image must be right.

    The formulas are those of arXiv 2306.13394 and of MME's ``eval_tool/calculation.py``
    (https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation). Perception is the sum of ten
    tasks, cognition of four. Question ids are the images' paths, as in LLaVA's ``llava_mme.jsonl``, and prompts are
    recognised as its ``convert_answer_to_mme.py`` does.
    """
    labels = mme_labels(sources.annotations)
    matched = match(mme_keys(sources.answers), labels, sources.annotations)
    images: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for key, label in labels.items():
        images[key[:2]].append(key in matched.texts and mme_answer(matched.texts[key]) == label)
    tasks: dict[str, list[list[bool]]] = defaultdict(list)
    for (task, image), right in images.items():
        if len(right) != 2:
            raise StartupError(f"{sources.annotations}: {task} {image} has {len(right)} questions instead of two")
        tasks[task].append(right)
    points = {task: 100 * mean([sum(right) / 2 + all(right) for right in both]) for task, both in tasks.items()}
    scores = []
    for name, parts in MME_TASKS.items():
        whole = name == "perception" and points.keys() >= {*parts}
        total = sum(points[task] for task in parts if task in points)
        scores += [Score(name, total, (1510.7, 1531.3) if whole else None)]
        scores += [Score(f"  {task}", points[task]) for task in parts if task in points]
    return Result(scores, len(labels), matched.missing, matched.unknown, note="In points: a task has at most 200.")


def mme_keys(answers: Iterable[Answer]) -> Iterable[tuple[tuple[str, str, str], Answer]]:
    for answer in answers:
        path = Path(str(answer.question_id))
        yield (path.parts[0], path.stem, mme_question(answer.prompt)), answer


def mme_labels(folder: Path) -> dict[tuple[str, str, str], str]:
    """The right answers by task, image and question.

    ``folder`` is MME's release, with a folder for each task and a text file for each image, or its
    ``eval_tool/Your_Results``, with a file for each task.
    """
    labels = {}
    tasks = [task for parts in MME_TASKS.values() for task in parts]
    for task in tasks:
        whole = folder / f"{task}.txt"
        # In half of the tasks the questions lie beside the images.
        files = (
            [whole] if whole.is_file() else sorted({*folder.glob(f"{task}/*.txt"), *folder.glob(f"{task}/q*/*.txt")})
        )
        for file in files:
            for number, line in enumerate(read(file).decode(errors="replace").splitlines(), start=1):
                if not line.strip():
                    continue
                fields = line.rstrip().split("\t")
                image = file.stem if file != whole else Path(fields.pop(0)).stem
                if len(fields) < 2 or fields[1].strip().lower() not in ("yes", "no"):
                    raise StartupError(f"{file} line {number}: not a question and yes or no, separated by a tab")
                labels[task, image, mme_question(fields[0])] = fields[1].strip().lower()
    if not labels:
        raise StartupError(f"{folder}: no task of MME is in it, such as existence.txt or existence/*.txt")
    return labels
