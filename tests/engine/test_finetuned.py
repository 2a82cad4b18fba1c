"""From drawn images to answers: what llava-api finetune has trained is served and merged as PEFT computes it."""

import json
from pathlib import Path
from random import Random

from peft import PeftModel
from transformers import AutoModelForImageTextToText

from llava_api.cli.flags import demo_folder
from llava_api.cli.main import main
from tests.engine.test_checkpoint_formats import as_transformers_computes, check, served, settings_for
from tests.support.small_engine import SmallEngine, image_request
from training.teal import teal_drawing, write_lesson

DEMO = demo_folder() / "llava-tiny-1.5"
TOKENS = 8
QUICK = (
    *("--rank", "16", "--alpha", "32", "--batch", "4", "--epochs", "4", "--workers", "0"),
    *("--learning-rate", "2e-3", "--projector-learning-rate", "1e-3", "--no-gradient-checkpointing"),
)


def train(lesson: Path, adapter: Path) -> list[float]:
    """The loss of each step."""
    write_lesson(lesson, teal=12, old=4)
    paths = ("--data", str(lesson / "train.json"), "--image-folder", str(lesson / "images"), "--output", str(adapter))
    main(["finetune", str(DEMO), *paths, *QUICK])
    return [json.loads(line)["loss"] for line in (adapter / "log.jsonl").read_text().splitlines()]


def test_what_was_trained_is_what_is_served_and_what_is_merged(tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    losses = train(tmp_path / "lesson", adapter)
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    main(["merge", str(DEMO), str(adapter), "--output", str(merged)])
    base = AutoModelForImageTextToText.from_pretrained(DEMO)
    references = [
        PeftModel.from_pretrained(base, adapter).eval(),
        AutoModelForImageTextToText.from_pretrained(merged).eval(),
    ]
    settings = settings_for(tmp_path, lora=[f"teal={adapter}"])
    model = served(DEMO, settings)
    (teal,) = model.adapters.served.values()
    with SmallEngine(model, settings) as engine:
        for number in range(3):
            image = teal_drawing(Random(f"held out {number}"), 300).image
            request = image_request(model, image, f"{number}", teal)
            answer = engine.greedy(request, TOKENS)
            for reference in references:
                check(answer, as_transformers_computes(reference, request, answer))
            plain = engine.greedy(image_request(model, image, f"plain {number}"), TOKENS)
            assert plain.logprobs != answer.logprobs
