"""Training samples are shown to the model as the server shows the same conversation, to the bit."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from llava_api.chat.explain import Explained, explain
from llava_api.chat.model import ServedModel
from llava_api.chat.prepare import Preparer
from llava_api.cli.conversation import data_url
from llava_api.cli.flags import find_model
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.finetune.check import check
from llava_api.finetune.dataset import IGNORED, FinetuneDataset, collator
from llava_api.images.load import ImageLoader
from llava_api.images.previews import media_type
from llava_api.limits.account import Account
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.settings import Settings
from tests.support.finetune import model_input, samples_of, served, turns
from tests.support.tiny_checkpoints import DEMO

SIZES = ((640, 411), (37, 200))
"""(width, height) of the images; both are padded, and one is smaller than a tile."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of noise, of which one is stored lying on its side."""
    random = np.random.default_rng(20)
    for name, (width, height) in zip(("a.jpg", "b.png"), SIZES, strict=True):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "a.jpg" else 1
        image.save(tmp_path / name, exif=exif)
    return tmp_path


async def explained(model: ServedModel, messages: list[dict[str, Any]]) -> Explained:
    """What the server shows the model for a chat request."""
    images = ImageLoader(model.image_mode, Settings())
    try:
        grammars = GrammarChecker(model.checkpoint.tokenizer_json, model.stop_token_ids)
        preparer = Preparer(model, Settings(), 8192, images, grammars)
        request = ChatCompletionRequest.model_validate({"model": model.names[0], "messages": messages})
        return await explain(preparer, request, Account())
    finally:
        await images.close()


def user(text: str, *images: Path) -> dict[str, Any]:
    shown = [
        {"type": "image_url", "image_url": {"url": data_url(data, media_type(data))}}
        for data in map(Path.read_bytes, images)
    ]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


@pytest.mark.parametrize(
    "name",
    ["llava-tiny-1.5", "llava-tiny-1.6", "llama 1.5", "qwen2 1.5", "mistral 1.6", "qwen2 1.6", "llama3 1.6"],
)
async def test_ids_and_pixels_are_the_servers(name: str, folder: Path) -> None:
    model = served(name, folder)
    spoken = turns(
        "What is on the left?\n<image>", "A café, </s> 12.", " And now?", "Nothing", "<image>\nHere?", "It's a lamp."
    )
    system = [] if "tiny" in name else ["Be brief."]
    sample = {
        "image": ["a.jpg", "b.png"],
        "conversations": [*({"from": "system", "value": text} for text in system), *spoken],
    }
    example = FinetuneDataset(samples_of(folder, sample), model_input(model))[0]
    messages = [
        *({"role": "system", "content": text} for text in system),
        user("What is on the left?", folder / "a.jpg"),
        {"role": "assistant", "content": "A café, </s> 12."},
        user(" And now?"),
        {"role": "assistant", "content": "Nothing"},
        user("Here?", folder / "b.png"),
    ]
    # The server's prompt for each question is how the sample goes up to its answer.
    for asked in (1, 3, 5):
        prompt = (await explained(model, messages[: len(system) + asked])).explanation.prompt_token_ids
        assert example.input_ids[: len(prompt)].tolist() == prompt
        assert example.labels[len(prompt) - 1] == IGNORED
        assert example.labels[len(prompt)] == example.input_ids[len(prompt)]
    shown = await explained(model, messages)
    assert [image.tobytes() for image in example.images] == [image.pixels.tobytes() for image in shown.rendered]
    values = collator(model_input(model))([example])["pixel_values"].numpy()
    for image, described in zip(values, shown.explanation.images, strict=True):
        own = image[: described.pixels_shape[0]] if len(described.pixels_shape) == 4 else image
        assert hashlib.sha256(own.tobytes()).hexdigest() == described.pixels_sha256


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llava-tiny-1.6", None),
        ("llava-tiny-1.5", "hub"),
        ("mistral 1.6", "llava_llama_2"),
        ("qwen2 1.6", None),
        ("llama3 1.6", None),
    ],
)
def test_the_check_counts_the_tokens_of_the_dataset(name: str, family: str | None, folder: Path) -> None:
    items = [
        {"image": ["a.jpg", "b.png"], "conversations": turns("<image>What?<image>", "Ah.", "So?", " Größe: 東京 🐈 ")},
        {"image": "b.png", "conversations": turns("<image>", "</s>")},
        {"conversations": turns("Who are you?", "A lamp.")},
    ]
    model = model_input(served(name, folder, prompt_family=family))
    samples = samples_of(folder, *items)
    dataset = FinetuneDataset(samples, model)
    assert check(samples, model).lengths == [len(dataset[index].input_ids) for index in range(3)]


@pytest.mark.parametrize("name", ["llava-tiny-1.5", "llava-tiny-1.6"])
def test_transformers_model_takes_the_batches_and_knows_the_answers(name: str, folder: Path) -> None:
    model = model_input(served(name, folder))
    circle = str(DEMO / "red-circle.png")
    items = [
        {"image": circle, "conversations": turns("<image>\nWhat color is the circle?", "Red.")},
        {"conversations": turns("Who are you?", "A lamp.")},
        {"image": ["a.jpg", "b.png"], "conversations": turns("<image>\n<image>\nIs there a circle?", "No.")},
    ]
    dataset = FinetuneDataset(samples_of(folder, *items), model)
    batch = collator(model)([dataset[index] for index in range(3)])
    config = transformers.AutoConfig.from_pretrained(find_model(name))
    config.update(model.config_overrides())
    trained = transformers.AutoModelForImageTextToText.from_pretrained(find_model(name), config=config)
    with torch.no_grad():
        output = trained.eval()(**batch)
    assert torch.isfinite(output.loss)
    learned = batch["labels"][0, 1:] != IGNORED
    assert output.logits[0, :-1].argmax(-1)[learned].tolist() == batch["labels"][0, 1:][learned].tolist()


def test_modality_lengths_are_words_negative_without_an_image(folder: Path) -> None:
    items = [
        {"image": "a.jpg", "conversations": turns("<image>\nWhat is it?", "A very old lamp.")},
        {"conversations": turns("Who are you?", "A lamp.")},
    ]
    dataset = FinetuneDataset(samples_of(folder, *items), model_input(served("llava-tiny-1.5", folder)))
    assert dataset.modality_lengths() == [7, -5]
