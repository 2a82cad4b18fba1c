"""The bundled checkpoints are ordinary hub-format checkpoints: transformers loads them and sees the same."""

import warnings

import pytest
from PIL import Image

from llava_api.cli.flags import demo_folder
from llava_api.cli.serve import DEMO_IMAGE


@pytest.mark.parametrize("name", ["llava-tiny-1.5", "llava-tiny-1.6"])
def test_transformers_loads_and_answers(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(demo_folder() / name)
        model, report = AutoModelForImageTextToText.from_pretrained(demo_folder() / name, output_loading_info=True)
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this image?"}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        # A square, because hub processors crop where LLaVA pads.
        image = Image.open(demo_folder() / DEMO_IMAGE).convert("RGB").crop((0, 0, 180, 180))
        # The template writes BOS itself, as the hub's do.
        inputs = processor(images=image, text=prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() == "A red circle."
