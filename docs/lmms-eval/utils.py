"""What lmms-eval asks of a task that lies in files: here those of ``python -m training.evaluation_files drawn``."""

import json
from pathlib import Path

from PIL import Image

FOLDER = Path("drawn")


def doc_to_visual(doc):
    return [Image.open(FOLDER / "images" / doc["image"]).convert("RGB")]


def pope_docs(dataset):
    """lmms-eval's name for the right answer."""
    return dataset.rename_column("label", "answer")


def vqa_docs(dataset):
    """VQAv2 has questions and people's answers in two files."""
    annotations = json.loads((FOLDER / "vqa_annotations.json").read_text())["annotations"]
    answers = {each["question_id"]: each["answers"] for each in annotations}
    return dataset.map(lambda doc: {"answers": answers[doc["question_id"]]})
