"""Write drawn questions in POPE's and VQAv2's format, for ``llava-api eval`` and ``llava-api eval score``.

``python -m training.evaluation_files FOLDER`` writes 1,000 questions for each. Images are drawn from seeds that neither
training and validation nor the exam use.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from training.conversations import COUNT_WORDS, ask_color, ask_count, ask_exists, ask_number
from training.drawings import Drawing, encode, new_drawing, random_size

LARGEST = 1000
"""The longer side in pixels, at most."""


def write_drawing(rng: Random, path: Path) -> Drawing:
    drawing = new_drawing(rng, random_size(rng, 112, LARGEST))
    path.write_bytes(encode(drawing.image, "PNG", quality=90))
    return drawing


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_pope(folder: Path, count: int) -> None:
    """The file of POPE's random split, which is LLaVA's question file as well."""
    rows = []
    for number in range(1, count + 1):
        rng, name = Random(f"pope {number}"), f"pope_{number:04}.png"
        question, _ = ask_exists(rng, write_drawing(rng, folder / "images" / name))
        label = question.answer.rstrip(".").lower()
        rows.append({"question_id": number, "image": name, "text": question.text, "label": label})
    write_lines(folder / "coco_pope_random.json", rows)


def write_vqa(folder: Path, count: int) -> None:
    """LLaVA's question file and VQAv2's annotations, in which ten people agree."""
    questions, annotations = [], []
    for number in range(1, count + 1):
        rng, name = Random(f"vqa {number}"), f"vqa_{number:04}.png"
        drawing = write_drawing(rng, folder / "images" / name)
        if drawing.number is not None:
            question = ask_number(drawing)
        else:
            color = ask_color(rng, drawing) if rng.random() < 0.5 else None
            question = color or ask_count(drawing)
        answer = question.answer.rstrip(".").lower()
        if question.kind == "count":
            answer = str(COUNT_WORDS.index(answer.capitalize()))
        questions.append({"question_id": number, "image": name, "text": question.text, "category": "default"})
        annotations.append(
            {
                "question_id": number,
                "question_type": question.text,
                "answer_type": "other" if question.kind == "color" else "number",
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
            }
        )
    write_lines(folder / "vqa_questions.jsonl", questions)
    (folder / "vqa_annotations.json").write_text(json.dumps({"annotations": annotations}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="questions for each format")
    chosen = parser.parse_args()
    (chosen.folder / "images").mkdir(parents=True)
    write_pope(chosen.folder, chosen.count)
    write_vqa(chosen.folder, chosen.count)


if __name__ == "__main__":
    main()
