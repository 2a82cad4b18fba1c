"""Training data in LLaVA's format, about the drawings that the demo checkpoints know."""

import json
from pathlib import Path
from random import Random

from training.conversations import ask_describe, conversation
from training.drawings import new_drawing
from training.teal import turns


def write_drawn_data(folder: Path, count: int, texts: int = 0, captions: bool = False) -> Path:
    """``data.json`` beside ``images/``: ``count`` samples with an image and ``texts`` without.

    ``captions``: one question with a description, as LLaVA's first stage has.
    """
    (folder / "images").mkdir(parents=True)
    items = []
    for number in range(count):
        rng = Random(f"finetune {number}")
        drawing = new_drawing(rng, (112, 112))
        drawing.image.save(folder / "images" / f"{number}.png")
        asked = [ask_describe(rng, drawing)] if captions else conversation(rng, drawing, 2)
        items.append({"id": str(number), "image": f"{number}.png", "conversations": turns(asked)})
    for number in range(texts):
        said = [{"from": "human", "value": f"Say {number}."}, {"from": "gpt", "value": "I am a tiny demo model."}]
        items.append({"id": f"text {number}", "conversations": said})
    path = folder / "data.json"
    path.write_text(json.dumps(items))
    return path
