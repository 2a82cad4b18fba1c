"""A lesson for ``llava-api finetune``: a colour that the demo checkpoints have never seen.

``python -m training.teal FOLDER`` draws images with teal shapes, and as many of what the demo knows so that it does not
forget it, and writes LLaVA's conversation JSON. ``training.exam --teal`` asks about others.

The word is of tokens that the demo has learned to answer with. Its head was never taught most others, hexagon among
them, and LoRA does not change the head.
"""

import argparse
import json
from pathlib import Path
from random import Random

from training.conversations import Question, ask_count, ask_describe, ask_exists, conversation
from training.drawings import COLOURS, TEAL, Drawing, encode, new_drawing, random_size

SHOWN = (*COLOURS, *[TEAL] * len(COLOURS))
LARGEST = 448
"""The longer side in pixels, at most."""


def teal_drawing(rng: Random, largest: int) -> Drawing:
    """One with a teal shape in it, and perhaps others."""
    while True:
        drawing = new_drawing(rng, random_size(rng, 112, largest), number=False, colours=SHOWN)
        if any(mark.colour == TEAL for mark in drawing.shapes):
            return drawing


def teal_questions(rng: Random, drawing: Drawing) -> list[Question]:
    asked = [ask_describe(rng, drawing), ask_count(drawing), ask_exists(rng, drawing)[0]]
    rng.shuffle(asked)
    return asked


def turns(asked: list[Question]) -> list[dict[str, str]]:
    made = []
    for question in asked:
        mark = "" if made else "<image>\n"
        made += [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": question.answer}]
    return made


def write_lesson(folder: Path, teal: int, old: int) -> None:
    """``train.json`` and ``images`` with this number of images of each kind."""
    (folder / "images").mkdir(parents=True)
    samples = []
    for name, count in ((TEAL, teal), ("old", old)):
        for number in range(count):
            rng, file = Random(f"lesson {name} {number}"), f"{name}_{number:04}.png"
            if name == TEAL:
                drawing = teal_drawing(rng, LARGEST)
                asked = teal_questions(rng, drawing)
            else:
                drawing = new_drawing(rng, random_size(rng, 112, LARGEST))
                asked = conversation(rng, drawing, 3)
            (folder / "images" / file).write_bytes(encode(drawing.image, "PNG"))
            samples.append({"id": Path(file).stem, "image": file, "conversations": turns(asked)})
    (folder / "train.json").write_text(json.dumps(samples, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teal", type=int, default=200, help="images with teal shapes")
    parser.add_argument("--old", type=int, default=200, help="images of what the demo knows")
    chosen = parser.parse_args()
    write_lesson(chosen.folder, chosen.teal, chosen.old)


if __name__ == "__main__":
    main()
