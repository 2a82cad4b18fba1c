"""Whether the model on a GPU gets what LLaVA's original code gives it: ``python -m benchmarks.gpu_fidelity FOLDER``.

Requests go the server's way, from the JSON to what vLLM is handed; then the levels are looked up on the GPU, by the
module that does it beside the vision tower. Pixels and token ids are compared with ``tests/golden``. FOLDER is a
checkpoint of ``benchmarks/shapes.py``. Prints one line of JSON.
"""

import asyncio
import base64
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.shapes import IMAGE_TOKEN, with_tiles
from llava_api.chat.model import open_model
from llava_api.chat.prepare import Preparer
from llava_api.chat.question import chat_question
from llava_api.engine.base import GenerationRequest
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.images.load import ImageLoader
from llava_api.limits.account import Account
from llava_api.prompts.families import VICUNA_V1
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.settings import Settings
from tests.support.golden import cases, golden_image

Json = dict[str, Any]
BOS = 1


def image_part(width: int, height: int, seed: int) -> Json:
    file = io.BytesIO()
    golden_image(width, height, seed).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


class Prepared:
    """Requests as the server prepares them for the engine."""

    def __init__(self, folder: Path, image_mode: str) -> None:
        settings = Settings.model_validate({"prompt_family": VICUNA_V1.name, "image_mode": image_mode})
        self.model = open_model(str(folder), ("m",), settings)
        images = ImageLoader(self.model.image_mode, settings)
        self.preparer = Preparer(self.model, settings, 100_000, images, GrammarChecker())

    def request(self, messages: list[Json]) -> GenerationRequest:
        asked = ChatCompletionRequest.model_validate({"model": "m", "max_tokens": 1, "messages": messages})
        question = chat_question(asked, self.model, 1)
        return asyncio.run(self.preparer.prepare(question, "measured", Account())).request


def wrong_pixels(folder: Path, tiled: Path, device: str) -> list[str]:
    """The images that the vision tower would not see to the bit as with LLaVA's original code."""
    from llava_api.engine.vllm_engine import engine_input
    from llava_api.engine.vllm_models import LevelValues

    # The golden file writes null where image_aspect_ratio is not set.
    modes = {"pad": Prepared(folder, "pad"), None: Prepared(folder, "square"), "anyres": Prepared(tiled, "anyres")}
    normalisation = modes["pad"].model.image_mode.normalisation
    with torch.device(device):
        values = LevelValues(SimpleNamespace(image_mean=normalisation.mean, image_std=normalisation.std))
    wrong = []
    for case in cases("pixels"):
        size = (case["width"], case["height"], case["seed"])
        handed: Any = engine_input(modes[case["mode"]].request([{"role": "user", "content": [image_part(*size)]}]))
        levels = handed["mm_kwargs"]["image"][0]["pixel_values"].data
        seen = values(levels.to(device)).cpu().numpy()
        if hashlib.sha256(seen.tobytes()).hexdigest() != case["sha256_float32"]:
            wrong.append(f"{case['mode']} {case['width']}x{case['height']}")
    return wrong


def wrong_ids(folder: Path) -> list[str]:
    """The conversations whose token ids are not those of LLaVA's ``tokenizer_image_token`` for the golden prompt."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prepared = Prepared(folder, "pad")
    wrong = []
    for case in cases("prompts"):
        if case["template"] != VICUNA_V1.name:
            continue
        system = [{"role": "system", "content": case["system"]}] if case["system"] else []
        request = prepared.request([*system, *map(message, case["turns"])])
        pieces = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in case["prompt"].split("<image>")]
        expected = [BOS, *pieces[0]]
        for piece in pieces[1:]:
            expected += [IMAGE_TOKEN] * 576 + piece
        if list(request.token_ids) != expected:
            wrong.append(case["case"])
    return wrong


def message(turn: Json) -> Json:
    images = [image_part(64, 64, number) for number in range(turn.get("images", 0))]
    return {"role": turn["role"], "content": [*images, {"type": "text", "text": turn["text"]}]}


def fidelity(folder: Path, device: str) -> Json:
    with tempfile.TemporaryDirectory() as name:
        pixels = wrong_pixels(folder, with_tiles(folder, Path(name) / "tiles"), device)
    return {"device": device, "wrong_pixels": pixels, "wrong_ids": wrong_ids(folder)}


if __name__ == "__main__":
    print(json.dumps(fidelity(Path(sys.argv[1]), "cuda" if torch.cuda.is_available() else "cpu")))
