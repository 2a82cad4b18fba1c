"""A checkpoint in LLaVA's original format, served by its folder alone: it sees what its hub-format twin sees."""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from llava_api.cli.flags import demo_folder
from tests.clients.conftest import running_server
from tests.support.questions import data_url

HUB_TO_ORIGINAL = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
)


def original_copy(demo: Path, folder: Path) -> Path:
    """llava-tiny-1.5 as LLaVA's training code would have saved it: ``.bin`` files, the tower in a folder of its own."""
    folder.mkdir()
    config = json.loads((demo / "config.json").read_text())
    weights = load_file(demo / "model.safetensors")
    tower = folder.parent / "clip-tower"
    tower.mkdir()
    inner = {name.removeprefix("vision_tower."): value for name, value in weights.items() if "vision_tower." in name}
    torch.save(inner, tower / "pytorch_model.bin")
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config["vision_config"]}))
    named = {}
    for hub, original in HUB_TO_ORIGINAL:
        named |= {original + name.removeprefix(hub): value for name, value in weights.items() if name.startswith(hub)}
    torch.save(named, folder / "pytorch_model.bin")
    llava = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "image_aspect_ratio": "pad",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "torch_dtype": "float32",
    }
    text = {name: value for name, value in config["text_config"].items() if name != "model_type"}
    (folder / "config.json").write_text(json.dumps({**text, **llava}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(demo / name, folder)
    return folder


@pytest.fixture
def star() -> Image.Image:
    """Not square, so that cropping would lose the blue square on its left."""
    picture = Image.new("RGB", (640, 320), "white")
    ImageDraw.Draw(picture).rectangle((20, 20, 130, 130), fill=(0, 0, 255))
    return picture


def test_it_is_converted_once_and_answers(tmp_path: Path, star: Image.Image) -> None:
    folder = original_copy(demo_folder() / "llava-tiny-1.5", tmp_path / "original")
    question = [
        {"type": "text", "text": "What is in this image?"},
        {"type": "image_url", "image_url": {"url": data_url(star)}},
    ]
    body = {"model": "tiny", "messages": [{"role": "user", "content": question}]}
    flags = ("--served-model-name", "tiny", "--cache-dir", str(tmp_path / "cache"))
    with running_server(str(folder), tmp_path / "terminal.txt", *flags) as server:
        reply = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60)
        assert reply.json()["choices"][0]["message"]["content"] == "A blue square."
        assert "original format" in server.terminal
        assert "prompt family vicuna_v1" in server.terminal
        assert re.search(r"converting .* once", server.terminal)
    (converted,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert (converted / "manifest.json").is_file()
