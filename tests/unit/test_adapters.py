"""Adapters given with ``--lora``: one that would be applied in part, or to no layer, is refused in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.chat.model import open_model
from llava_api.engine.base import Adapter
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tests.support.hub import hub
from tests.support.tiny_checkpoints import TEXT_HIDDEN, Tiny, Weights, write_hub

LAYERS = "base_model.model.model.language_model.layers"
QUERY = f"{LAYERS}.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(Tiny("mistral", "1.6"), tmp_path_factory.mktemp("pristine") / "hub", "classic")


def pair(layer: str, rank: int = 8, inputs: int = TEXT_HIDDEN, outputs: int = TEXT_HIDDEN) -> Weights:
    return {f"{layer}.lora_A.weight": torch.zeros(rank, inputs), f"{layer}.lora_B.weight": torch.zeros(outputs, rank)}


def write_adapter(folder: Path, weights: Weights, **config: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(weights, folder / "adapter_model.safetensors")


def served_beside(checkpoint: Path, folder: Path) -> Adapter:
    model = open_model(str(checkpoint), ("m",), Settings(lora=[f"birds={folder}"]))
    (adapter,) = model.adapters.served.values()
    return adapter


def refusal(checkpoint: Path, folder: Path) -> str:
    with pytest.raises(StartupError) as refused:
        served_beside(checkpoint, folder)
    message = str(refused.value)
    assert message.startswith("--lora birds: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "layer",
    [
        QUERY,
        f"{LAYERS}.1.self_attn.o_proj",
        # What PEFT writes with transformers before 4.52.
        "base_model.model.language_model.model.layers.0.mlp.up_proj",
        "model.language_model.layers.0.mlp.down_proj",
    ],
)
def test_what_the_engine_applies_is_served(tmp_path: Path, checkpoint: Path, layer: str) -> None:
    write_adapter(tmp_path, pair(layer))
    assert served_beside(checkpoint, tmp_path).rank == 8


def test_the_head_may_be_changed_too(tmp_path: Path, checkpoint: Path) -> None:
    rows = load_file(checkpoint / "model.safetensors")["language_model.lm_head.weight"].shape[0]
    write_adapter(tmp_path, pair("base_model.model.lm_head", outputs=rows))
    assert served_beside(checkpoint, tmp_path).rank == 8


def projector(checkpoint: Path) -> Weights:
    weights = load_file(checkpoint / "model.safetensors")
    return {f"base_model.model.model.{name}": one for name, one in weights.items() if "multi_modal_projector" in name}


def test_an_adapter_may_bring_its_own_projector_whole(tmp_path: Path, checkpoint: Path) -> None:
    whole = projector(checkpoint)
    assert len(whole) == 4
    write_adapter(tmp_path, pair(QUERY) | whole, modules_to_save=["multi_modal_projector"])
    assert served_beside(checkpoint, tmp_path).projector
    write_adapter(tmp_path, pair(QUERY) | whole)
    assert "multi_modal_projector" in refusal(checkpoint, tmp_path)
    name, weight = whole.popitem()
    write_adapter(tmp_path, pair(QUERY) | whole, modules_to_save=["multi_modal_projector"])
    assert f"its {name.removeprefix('base_model.model.model.')} is missing" in refusal(checkpoint, tmp_path)
    write_adapter(tmp_path, pair(QUERY), modules_to_save=["multi_modal_projector"])
    assert "linear_1.bias is missing" in refusal(checkpoint, tmp_path)
    write_adapter(tmp_path, pair(QUERY) | whole | {name: weight[:-1]}, modules_to_save=["multi_modal_projector"])
    assert "serve it beside the model that it was trained on" in refusal(checkpoint, tmp_path)
    write_adapter(tmp_path, pair(QUERY))
    assert not served_beside(checkpoint, tmp_path).projector


def test_the_rank_is_the_highest_of_all_layers(tmp_path: Path, checkpoint: Path) -> None:
    weights = pair(QUERY) | pair(f"{LAYERS}.1.self_attn.q_proj", rank=64)
    write_adapter(tmp_path, weights, rank_pattern={r"layers\.1\.self_attn\.q_proj": 64})
    assert served_beside(checkpoint, tmp_path).rank == 64
    write_adapter(tmp_path, weights, rank_pattern={})
    assert "with rank 8" in refusal(checkpoint, tmp_path)
    write_adapter(tmp_path, weights, rank_pattern={"(": 64})
    assert "rank_pattern" in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (pair(f"{LAYERS}.99.self_attn.q_proj"), "layers.99.self_attn.q_proj, which the served model does not have"),
        (pair(f"{LAYERS}.0.self_attn.qkv_proj"), "which the served model does not have"),
        (pair(QUERY, inputs=64), "(8, 64)"),
        (pair(QUERY, outputs=64), "(64, 8)"),
        (pair(QUERY, rank=4), "with rank 8"),
        ({}, "no tensors"),
        ({f"{QUERY}.lora_A.weight": torch.zeros(8, 128)}, "the other half of the pair"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(128, 8)}, "the other half of the pair"),
        ({**pair(QUERY), f"{QUERY}.lora_magnitude_vector": torch.zeros(128)}, "lora_magnitude_vector"),
        ({**pair(QUERY), f"{QUERY}.lora_B.bias": torch.zeros(128)}, "lora_B.bias"),
        (pair("base_model.model.model.language_model.embed_tokens"), "no lora_A or lora_B of a linear layer"),
        (
            {"base_model.model.model.language_model.embed_tokens.lora_embedding_A": torch.zeros(8, 99)},
            "no lora_A or lora_B of a linear layer",
        ),
        ({**pair(QUERY), "base_model.model.lm_head.base_layer.weight": torch.zeros(9, 128)}, "lm_head.base_layer"),
        (pair("base_model.model.model.layers.0.self_attn.q_proj"), "leave out 2 of its tensors"),
        (pair("base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"), "leave out 2 of its tensors"),
        ({f"{QUERY}.lora_A.default.weight": torch.zeros(8, 128)}, "leave out 1 of its tensors"),
    ],
)
def test_tensors_that_would_be_left_out_or_do_not_fit_are_named(
    tmp_path: Path, checkpoint: Path, weights: Weights, words: str
) -> None:
    write_adapter(tmp_path, weights)
    assert words in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "llava-api merge"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"bias": "all"}, "bias all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"r": 0}, "names no rank"),
        ({"r": "8"}, "names no rank"),
        ({"lora_alpha": None}, "names no lora_alpha"),
        ({"lora_alpha": float("inf")}, "names no lora_alpha"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern"),
    ],
)
def test_what_is_no_plain_lora_is_named(tmp_path: Path, checkpoint: Path, config: dict[str, Any], words: str) -> None:
    write_adapter(tmp_path, pair(QUERY), **config)
    assert words in refusal(checkpoint, tmp_path)


def test_a_damaged_adapter_is_named(tmp_path: Path, checkpoint: Path) -> None:
    assert "has no adapter_config.json" in refusal(checkpoint, tmp_path)
    write_adapter(tmp_path, pair(QUERY))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "half downloaded" in refusal(checkpoint, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    assert "not valid JSON" in refusal(checkpoint, tmp_path)


LOCATE = "import sys; from llava_api.checkpoints.adapters import locate_adapter; print(locate_adapter(*sys.argv[1:]))"


def test_an_adapter_comes_from_the_hub_as_models_do(tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    (source / "checkpoint-1000").mkdir(parents=True)
    write_adapter(source, pair(QUERY))
    (source / "README.md").write_text("birds")
    (source / "checkpoint-1000" / "adapter_model.safetensors").write_text("an older state of the training")
    with hub({"org/birds-lora": source}) as served:
        command = [sys.executable, "-c", LOCATE, "org/birds-lora", cache]
        online = {**os.environ, "HF_ENDPOINT": served.address, "HF_HUB_OFFLINE": "0"}
        opened = subprocess.run(command, env=online, capture_output=True, text=True, timeout=60)
        assert opened.returncode == 0, opened.stderr
        assert sorted(served.fetched) == [
            "org/birds-lora/adapter_config.json",
            "org/birds-lora/adapter_model.safetensors",
        ]
        folder = Path(opened.stdout.strip())
        assert load_file(folder / "adapter_model.safetensors").keys() == pair(QUERY).keys()
        # Once more without the hub, as a pod does whose weights are there.
        offline = {**online, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
        again = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=60)
        assert again.stdout == opened.stdout, again.stderr


@pytest.mark.parametrize(
    ("given", "words"), [("/data/adapters/birds", "there is no folder"), ("org/unknown", "the hub has no")]
)
def test_an_adapter_that_is_not_there_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert words in refusal(checkpoint, Path(given))
