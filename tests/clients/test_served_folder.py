"""A folder in LLaVA's original format, served with keys and a second port: its answers, and what an operator sees.

One server for both, as a start takes half a minute. The operator's test comes first, for it counts requests.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from llava_api.cli.flags import demo_folder
from tests.support.metrics_page import read_page
from tests.support.questions import data_url
from tests.support.serve import Server, running_server

KEY = "sk-llava-for-anne-0123456789"
ANNE = {"authorization": f"Bearer {KEY}"}
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


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = tmp_path_factory.mktemp("original")
    folder = original_copy(demo_folder() / "llava-tiny-1.5", made / "original")
    flags = ("--metrics-port", "0", "--api-key", f"anne={KEY}", "--served-model-name", "shown")
    with running_server(str(folder), made / "terminal.txt", *flags, "--cache-dir", str(cache)) as running:
        yield running


def test_metrics_on_a_port_of_their_own_and_a_line_for_each_request(server: Server) -> None:
    found = re.search(r"metrics and health without a key: (http://\S+)/metrics", server.terminal)
    assert found is not None
    question = {"model": "shown", "messages": [{"role": "user", "content": "A secret question"}], "max_tokens": 5}
    with httpx.Client(timeout=60) as client:
        reply = client.post(f"{server.base_url}/chat/completions", json=question, headers=ANNE)
        assert reply.status_code == 200
        assert client.post(f"{server.base_url}/chat/completions", json=question).status_code == 401
        assert client.get(f"{found[1]}/health/ready").status_code == 200
        assert client.get(f"{found[1]}/v1/models", headers=ANNE).status_code == 404
        page = read_page(client.get(f"{found[1]}/metrics").text)
        main = server.base_url.removesuffix("/v1")
        assert client.get(f"{main}/metrics").status_code == 401
        assert client.get(f"{main}/metrics", headers=ANNE).status_code == 200
    assert page.value("llava_api_completion_tokens_total", model="shown", key="anne") == 5
    # The client's one to the main port, and none of the metrics' port.
    assert page.value("llava_api_connections") == 1
    assert page.value("llava_api_state", state="ready") == 1
    assert page.value("llava_api_engine_stall_seconds") == 300
    assert page.labels("vllm:generation_tokens_total", "model_name") == {"shown"}
    assert page.total("vllm:generation_tokens_total") >= 5
    lines = [line for line in server.terminal.splitlines() if "route=/v1/chat/completions" in line]
    answered, refused = lines
    assert f"request_id={reply.headers['x-request-id']} key=anne client=127.0.0.1 " in answered
    assert " status=200 outcome=ok model=shown " in answered
    assert " completion_tokens=5 finish_reason=length " in answered
    assert " status=401 outcome=refused code=invalid_api_key " in refused
    # vLLM's statistics are in the metrics alone.
    written = server.terminal
    for absent in ("secret question", KEY, "throughput"):
        assert absent not in written


@pytest.fixture
def star() -> Image.Image:
    """Not square, so that cropping would lose the blue square on its left."""
    image = Image.new("RGB", (640, 320), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 130, 130), fill=(0, 0, 255))
    return image


def test_it_is_converted_once_and_answers(server: Server, cache: Path, star: Image.Image) -> None:
    """It sees what its twin in the hub's format sees."""
    question = [
        {"type": "text", "text": "What is in this image?"},
        {"type": "image_url", "image_url": {"url": data_url(star)}},
    ]
    body = {"model": "shown", "messages": [{"role": "user", "content": question}]}
    reply = httpx.post(f"{server.base_url}/chat/completions", json=body, headers=ANNE, timeout=60)
    assert reply.json()["choices"][0]["message"]["content"] == "A blue square."
    assert "original format" in server.terminal
    assert "prompt family vicuna_v1" in server.terminal
    assert re.search(r"converting .* once", server.terminal)
    (converted,) = [path for path in cache.iterdir() if path.is_dir()]
    assert (converted / "manifest.json").is_file()
