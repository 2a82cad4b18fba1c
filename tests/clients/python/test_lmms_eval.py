"""``lmms-eval``: the tasks of ``docs/lmms-eval`` on drawn questions, and the scores of ``llava-api eval score``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asked import CLIENTS

ROOT = CLIENTS.parent.parent
sys.path += [str(ROOT), str(ROOT / "src")]

from llava_api.evaluation.files import Sources, read_answers  # noqa: E402 - drawing and scoring need no more
from llava_api.evaluation.tasks import TASKS  # noqa: E402 - than lmms-eval has
from training.evaluation_files import write_pope, write_vqa  # noqa: E402

QUESTIONS = 40


@pytest.fixture(scope="module")
def evaluated(base_url: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the drawn questions, with lmms-eval's files in ``lmms/MODEL``, and its scores by task."""
    folder = tmp_path_factory.mktemp("lmms-eval")
    drawn = folder / "drawn"
    (drawn / "images").mkdir(parents=True)
    write_pope(drawn, QUESTIONS)
    write_vqa(drawn, QUESTIONS)
    flags = {
        "model": "openai",
        "model_args": f"model={model},base_url={base_url}",
        "include_path": str(ROOT / "docs" / "lmms-eval"),
        "tasks": "drawn_pope,drawn_vqa",
        "batch_size": "1",
        "output_path": "lmms",
    }
    arguments = [argument for name, value in flags.items() for argument in (f"--{name}", value)]
    command = [str(Path(sys.executable).parent / "lmms-eval"), *arguments, "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [results] = (folder / "lmms" / model).glob("*_results.json")
    return folder, json.loads(results.read_text())["results"]


def own_scores(folder: Path, task: str, scored_as: str, annotations: str) -> dict[str, float]:
    """From lmms-eval's answers, whose ``doc_id`` is the place of the question in its file."""
    [samples] = folder.glob(f"lmms/*/*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = folder / f"{task}.jsonl"
    lines = [json.dumps({"question_id": row["doc_id"] + 1, "text": row["filtered_resps"]}) + "\n" for row in rows]
    answers.write_text("".join(lines))
    score, _ = TASKS[scored_as]
    result = score(Sources(read_answers([answers]), folder / "drawn" / annotations))
    assert (result.questions, result.missing, result.unknown) == (QUESTIONS, [], [])
    return {each.name: each.value / 100 for each in result.scores}


def test_pope(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    theirs = results["drawn_pope"]
    ours = own_scores(folder, "drawn_pope", "pope", "coco_pope_random.json")
    for name, same in (("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("F1", "f1_score")):
        assert ours[f"random: {name}"] == pytest.approx(theirs[f"pope_{same},none"])
    assert ours["random: accuracy"] > 0.9


def test_vqav2(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    ours = own_scores(folder, "drawn_vqa", "vqav2", "vqa_annotations.json")
    assert ours["accuracy"] == pytest.approx(results["drawn_vqa"]["exact_match,none"])
    assert ours["accuracy"] > 0.9
