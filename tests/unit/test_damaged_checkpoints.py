"""Damaged, odd and hostile checkpoints: one clear sentence each, and nothing left behind."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.chat.model import open_model
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.inspect import Sources, inspect_checkpoint
from llava_api.checkpoints.size import count_parameters
from llava_api.errors import StartupError
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.settings import Settings
from tests.support.tiny_checkpoints import Tiny, write_hub, write_original, write_original_lora, write_tower
from tests.support.tokenizer import llama_like_tokenizer

NEXT = Tiny("mistral", "1.6")
LLAMA = Tiny("llama", "1.5")
INFINITE = float("inf")


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    for key, value in changes.items():
        place = content
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(NEXT, tmp_path_factory.mktemp("pristine") / "hub", "classic")


@pytest.fixture
def hub(tmp_path: Path, pristine: Path) -> Path:
    """Its small files alone."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for file in pristine.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


ODD_VALUES = ["x", [], {"a": 1}, True, 1.5, -3, 10**30, INFINITE, [5]]


@pytest.mark.parametrize(
    "key",
    [
        "architectures",
        "text_config",
        "vision_config",
        "quantization_config",
        "text_config__max_position_embeddings",
        "text_config__rope_scaling",
        "text_config__model_type",
        "vision_config__image_size",
        "vision_config__patch_size",
        "image_grid_pinpoints",
        "image_token_index",
        "image_aspect_ratio",
        "mm_patch_merge_type",
    ],
)
def test_odd_values_in_config_json_end_in_a_sentence(hub: Path, key: str) -> None:
    whole = (hub / "config.json").read_text()
    for value in ODD_VALUES:
        (hub / "config.json").write_text(whole)
        edit(hub, "config.json", **{key: value})
        # Some are harmless; what is not must be told in words, not by a traceback.
        with contextlib.suppress(StartupError):
            open_model(str(hub), ("m",), Settings())


@pytest.mark.parametrize(
    "points", [[[0, 0]], [[-56, 56]], [[55, 57]], [[56 * 10**5, 56]], [[56]], [["a", "b"]], "(1x1),(2x2)", [], None]
)
def test_pinpoints_that_are_no_grids_of_tiles_are_refused(hub: Path, points: object) -> None:
    edit(hub, "config.json", image_grid_pinpoints=points)
    with pytest.raises(StartupError, match="image_grid_pinpoints"):
        open_model(str(hub), ("m",), Settings())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[(56, 112), (112, 56)]", ((56, 112), (112, 56))),
        ("[[56, 112], [112, 112]]", ((56, 112), (112, 112))),
        ("(1x1),...,(2x2)", ((56, 56), (56, 112), (112, 56), (112, 112))),
    ],
)
def test_pinpoints_as_llavas_training_code_takes_them(
    tmp_path: Path, written: str, meant: tuple[tuple[int, int], ...]
) -> None:
    original = write_original(NEXT, tmp_path / "o", write_tower(NEXT, tmp_path / "tower"))
    edit(original, "config.json", image_grid_pinpoints=written)
    assert inspect_checkpoint(str(original)).pinpoints == meant


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"top_p": "x"}),
        ("generation_config.json", {"temperature": [1], "do_sample": True}),
        ("preprocessor_config.json", {"image_mean": ["a", "b", "c"]}),
        ("tokenizer.json", {"added_tokens": [{"id": "x", "content": "<s>"}]}),
        ("tokenizer.json", {"added_tokens": [{"id": 1, "content": None}]}),
        ("tokenizer.json", {"model": {"type": "Nonsense", "vocab": {"a": 0}}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}),
        ("tokenizer.json", {"normalizer": "x"}),
        ("tokenizer.json", {"post_processor": 5}),
    ],
)
def test_odd_values_in_other_files_end_in_a_sentence(hub: Path, name: str, changes: dict[str, Any]) -> None:
    edit(hub, name, **changes)
    with pytest.raises(StartupError):
        open_model(str(hub), ("m",), Settings())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, ""])
def test_what_is_not_json_is_named(hub: Path, name: str, content: str) -> None:
    (hub / name).write_text(content)
    with pytest.raises(StartupError, match=name):
        open_model(str(hub), ("m",), Settings())


@pytest.mark.parametrize("layers", [-1, 0, 10**30, "x"])
def test_an_impossible_number_of_layers_is_refused_at_once(hub: Path, layers: object) -> None:
    edit(hub, "config.json", text_config__num_hidden_layers=layers)
    with pytest.raises(StartupError, match="num_hidden_layers"):
        count_parameters(inspect_checkpoint(str(hub)))


def test_a_template_that_nobody_needs_is_not_run(tmp_path: Path) -> None:
    hub = write_hub(LLAMA, tmp_path / "hub", "classic")
    (hub / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    assert open_model(str(hub), ("m",), Settings()).family.name == "vicuna_v1"


def test_truncation_and_padding_left_in_tokenizer_json_change_nothing() -> None:
    settings = json.loads(llama_like_tokenizer().to_str())
    wanted = TextTokenizer(json.dumps(settings), "<s>").encode(["USE it all the way"])
    settings["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    assert TextTokenizer(json.dumps(settings), "<s>").encode(["USE it all the way"]) == wanted


# The original format


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(LLAMA, tmp_path / "o", write_tower(LLAMA, tmp_path / "t"), files="safetensors", shards=1)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("k_proj"), "k_proj"),
        (without("layers.1.mlp"), r"layers\.1\.mlp"),
        (without("lm_head"), "lm_head"),
        (with_tensor("model.layers.7.self_attn.q_proj.weight", torch.zeros(128, 128)), r"layers\.7"),
        (with_tensor("model.norm.weight", torch.zeros(5)), "norm"),
        (with_tensor("model.mm_projector.0.weight", torch.zeros(2, 2)), "linear_1"),
        (with_tensor("model.embed_tokens.weight", torch.zeros(100, 128)), "embed_tokens"),
        (with_tensor("model.embed_tokens.weight", torch.zeros(7)), "embed_tokens"),
        (with_tensor("lm_head.weight", torch.zeros(408, 128, dtype=torch.int64)), "lm_head"),
        (with_tensor("something.else", torch.zeros(1)), r"something\.else"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    tmp_path: Path, original: Path, change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    change_tensors(original, change)
    with pytest.raises(StartupError, match=words):
        ready_checkpoint(inspect_checkpoint(str(original)), Sources(), str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("[!.]*")) == []


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, original: Path) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", 5, ["a"]):
        index = {"weight_map": {"model.norm.weight": name}}
        (original / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(StartupError, match="not a file in its folder"):
            ready_checkpoint(inspect_checkpoint(str(original)), Sources(), str(tmp_path / "cache"))


def test_an_empty_tokenizer_model_is_named(original: Path) -> None:
    (original / "tokenizer.model").write_bytes(b"")
    with pytest.raises(StartupError, match=r"tokenizer\.model"):
        inspect_checkpoint(str(original))


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (without("layers.0.self_attn.q_proj.lora_A"), {}),
        (without("layers.0.self_attn.q_proj.lora_B"), {}),
        (with_tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", torch.zeros(1, 4)), {}),
        (without("nothing"), {"r": -4}),
        (without("nothing"), {"r": True}),
        (without("nothing"), {"r": 999}),
        (without("nothing"), {"lora_alpha": INFINITE}),
        (without("nothing"), {"lora_alpha": "x"}),
        (without("nothing"), {"use_dora": True}),
    ],
)
def test_a_damaged_lora_is_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], config: dict[str, Any]
) -> None:
    lora = write_original_lora(LLAMA, tmp_path / "lora", tmp_path / "base")
    (lora / "adapter_model.safetensors").rename(lora / "model.safetensors")
    change_tensors(lora, change)
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    edit(lora, "adapter_config.json", **config)
    sources = Sources(model_base=str(tmp_path / "base"))
    with pytest.raises(StartupError, match=r"LoRA|adapter_config"):
        ready_checkpoint(inspect_checkpoint(str(lora), sources), sources, str(tmp_path / "cache"))
