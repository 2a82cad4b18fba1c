"""Training samples for tests, and checkpoints of config and tokenizer to show them to."""

import json
from pathlib import Path
from typing import Any

from llava_api.chat.model import ServedModel, open_model
from llava_api.cli.flags import find_model
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import Samples
from llava_api.settings import Settings
from tests.support.tiny_checkpoints import Tiny, classic_config, write_processor
from tests.support.tiny_tokenizers import write_json, write_tokenizer

CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""ChatML, for family ``hub``."""


def turns(*texts: str) -> list[dict[str, str]]:
    """Questions and answers in turn."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def samples_of(folder: Path, *items: Any) -> Samples:
    """A file of samples in ``folder``, where their images are too."""
    (folder / "data.json").write_text(json.dumps(items))
    return Samples.read(folder / "data.json", folder)


def served(model: str, folder: Path, **settings: Any) -> ServedModel:
    """A bundled demo, or ``text model`` ``version``: a small checkpoint of config and tokenizer."""
    if model.startswith("llava-tiny"):
        return open_model(find_model(model), (model,), Settings(**settings))
    text_model, version = model.split()
    tiny = Tiny(text_model, "1.6" if version == "1.6" else "1.5")
    made = folder / "checkpoint"
    write_tokenizer(text_model, made, image_token=True)
    write_json(made / "config.json", classic_config(tiny))
    write_processor(tiny, made)
    (made / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return open_model(str(made), (model,), Settings(**settings))


def model_input(model: ServedModel, plain: bool = False, **settings: Any) -> ModelInput:
    return ModelInput.of(model.checkpoint, model.family, model.tokenizer, model.image_mode, Settings(**settings), plain)
