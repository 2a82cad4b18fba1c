"""``llava-api eval score TASK``: the scores of a benchmark from a file of answers, beside LLaVA-1.5's published ones.

The scores are computed on this machine, without a server, as LLaVA's scripts and the benchmarks' own do it.
"""

import argparse
import json
from pathlib import Path

from llava_api.evaluation.files import Sources, read_answers
from llava_api.evaluation.result import PAPER, Result
from llava_api.evaluation.tasks import TASKS

NAMED = 5
"""How many questions a line for people names."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("score", help="score a file of answers", description=__doc__)
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    for name, (score, annotations) in TASKS.items():
        task = tasks.add_parser(name, help=annotations, description=score.__doc__)
        answers = task.add_argument(
            "--answers-file", "--result-file", dest="answers", nargs="+", type=Path, required=True
        )
        answers.metavar, answers.help = "FILE", "answers in LLaVA's format; several files are chunks of one run"
        task.add_argument("--annotations", type=Path, required=True, metavar="PATH", help=annotations)
        task.add_argument("--json", action="store_true", help="print JSON")
        task.set_defaults(run=run, task=name, question_file=None, split="test")
        if name in ("pope", "vizwiz"):
            task.add_argument("--question-file", type=Path, metavar="FILE", help="the questions that were run")
        if name == "scienceqa":
            task.add_argument("--split", metavar="NAME", help="a split of pid_splits.json (default: test)")


def run(chosen: argparse.Namespace) -> None:
    score, _ = TASKS[chosen.task]
    sources = Sources(read_answers(chosen.answers), chosen.annotations, chosen.question_file, chosen.split)
    result = score(sources)
    print(json.dumps(facts(chosen.task, result), indent=2) if chosen.json else table(chosen.task, result))


def facts(task: str, result: Result) -> dict[str, object]:
    published = {score.name.strip(): score.published for score in result.scores if score.published}
    return {
        "task": task,
        "questions": result.questions,
        "scores": {score.name.strip(): round(score.value, 4) for score in result.scores},
        "published": {
            "source": PAPER,
            "llava-1.5-7b": {name: both[0] for name, both in published.items()},
            "llava-1.5-13b": {name: both[1] for name, both in published.items()},
        },
        "missing": result.missing,
        "unknown": result.unknown,
        "note": result.note,
    }


def table(task: str, result: Result) -> str:
    width = max(len(score.name) for score in result.scores)
    lines = [f"{task}, {result.questions:,} questions", f"{'':{width}}  {'yours':>8}  {'1.5-7B':>8}  {'1.5-13B':>8}"]
    for score in result.scores:
        cells = [f"{score.value:8.2f}", *(f"{value:8.1f}" for value in score.published or ())]
        lines.append("  ".join([f"{score.name:{width}}", *cells]))
    if any(score.published for score in result.scores):
        lines.append(f"1.5-7B and 1.5-13B: published ({PAPER}). {result.note}".rstrip())
    if result.missing:
        lines.append(f"{len(result.missing):,} questions have no answer and count as wrong: {some(result.missing)}")
    if result.unknown:
        lines.append(
            f"{len(result.unknown):,} answers are to questions that are not in the annotations: {some(result.unknown)}"
        )
    return "\n".join(lines)


def some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
