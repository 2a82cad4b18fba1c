"""A lesson for ``llava-api finetune``: hexagons, which the demo checkpoints have never seen.

``python -m training.hexagons FOLDER`` draws images with hexagons, and as many of what the demo knows so that it does
not forget it, and writes LLaVA's conversation JSON. ``training.exam --hexagons`` asks about others.
"""

import argparse
import json
from pathlib import Path
from random import Random

from training.conversations import Question, ask_count, ask_describe, conversation
from training.drawings import HEXAGON, KINDS, Drawing, encode, new_drawing, random_size

SHOWN = (*KINDS, HEXAGON, HEXAGON, HEXAGON)
LARGEST = 448
"""The longer side in pixels, at most."""


def hexagon_drawing(rng: Random, largest: int) -> Drawing:
    """One with a hexagon in it, and perhaps other shapes."""
    while True:
        drawing = new_drawing(rng, random_size(rng, 112, largest), number=False, kinds=SHOWN)
        if any(mark.kind == HEXAGON for mark in drawing.shapes):
            return drawing


def hexagon_questions(rng: Random, drawing: Drawing) -> list[Question]:
    asked = [ask_describe(rng, drawing), ask_count(drawing), Question("exists", "Is there a hexagon?", "Yes.")]
    colours = [mark.colour for mark in drawing.shapes if mark.kind == HEXAGON]
    if len(colours) == 1:
        asked.append(Question("color", "What color is the hexagon?", f"{colours[0].capitalize()}."))
    rng.shuffle(asked)
    return asked


def old_questions(rng: Random, drawing: Drawing) -> list[Question]:
    asked = conversation(rng, drawing, 4)
    return asked if rng.random() < 0.7 else [*asked, Question("exists", "Is there a hexagon?", "No.")]


def turns(asked: list[Question]) -> list[dict[str, str]]:
    made = []
    for question in asked:
        mark = "" if made else "<image>\n"
        made += [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": question.answer}]
    return made


def write_lesson(folder: Path, hexagons: int, old: int) -> None:
    (folder / "images").mkdir(parents=True)
    samples = []
    for name, count in (("hexagons", hexagons), ("old", old)):
        for number in range(count):
            rng, file = Random(f"lesson {name} {number}"), f"{name}_{number:04}.png"
            if name == "hexagons":
                drawing = hexagon_drawing(rng, LARGEST)
                asked = hexagon_questions(rng, drawing)
            else:
                drawing = new_drawing(rng, random_size(rng, 112, LARGEST))
                asked = old_questions(rng, drawing)
            (folder / "images" / file).write_bytes(encode(drawing.image, "PNG"))
            samples.append({"id": Path(file).stem, "image": file, "conversations": turns(asked)})
    (folder / "train.json").write_text(json.dumps(samples, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hexagons", type=int, default=200, help="images with hexagons")
    parser.add_argument("--old", type=int, default=200, help="images of what the demo knows")
    chosen = parser.parse_args()
    write_lesson(chosen.folder, chosen.hexagons, chosen.old)


if __name__ == "__main__":
    main()
