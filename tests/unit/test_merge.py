"""``llava-api merge``: an adapter and its base model become a checkpoint that computes as PEFT does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_api.checkpoints import shards
from llava_api.checkpoints.inspect import inspect_checkpoint
from llava_api.cli.main import main
from tests.support.tiny_checkpoints import (
    PATCH,
    TEXT_HIDDEN,
    TILE,
    Tiny,
    source_model,
    write_hub,
    write_original,
    write_original_lora,
    write_tower,
)

LLAMA = Tiny("llama", "1.5")
PROJECTOR = "model.multi_modal_projector.linear_1.weight"


def merge(base: Path, adapter: Path, output: Path) -> None:
    main(["merge", str(base), str(adapter), "--output", str(output)])


def refusal(base: Path, adapter: Path, output: Path) -> str:
    with pytest.raises(SystemExit) as ended:
        merge(base, adapter, output)
    assert not output.exists()
    assert not list(output.parent.glob(f".{output.name}.partial-*"))
    return str(ended.value.code)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_hub(LLAMA, tmp_path / "base", "classic")


def write_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """As PEFT saves one after a training."""
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model\..*_proj", **options}
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), LoraConfig(**chosen))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
                assert "lora_" in name or "modules_to_save" in name
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[1, *[LLAMA.image_token_id] * (TILE // PATCH) ** 2, 5, 6, 7]])
    pixels = torch.randn(1, 3, TILE, TILE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return torch.as_tensor(model.eval()(input_ids=ids, pixel_values=pixels).logits)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["multi_modal_projector"]},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"target_modules": r".*(language_model|vision_tower)\..*(q|v)_proj|.*linear_2"},
    ],
    ids=["projector", "patterns", "tower"],
)
def test_a_merged_checkpoint_computes_as_peft_does(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **options)
    wanted = logits(PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter))
    merge(base, adapter, tmp_path / "merged")
    made, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(made), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(source_model(LLAMA)), wanted, atol=0.01)
    assert inspect_checkpoint(str(tmp_path / "merged")).tokenizer_json == inspect_checkpoint(str(base)).tokenizer_json


def test_sums_are_made_in_float32_and_saved_in_the_bases_type_shard_by_shard(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGEST_SHARD", 40_000)
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["multi_modal_projector"])
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    merge(base, adapter, tmp_path / "merged")
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 3
    made = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert made.keys() == weights.keys()
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    held = load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(made["multi_modal_projector.linear_1.weight"], held[f"base_model.model.{PROJECTOR}"].bfloat16())
    query = "layers.1.self_attn.q_proj"
    down, up = (held[f"base_model.model.model.language_model.{query}.lora_{half}.weight"] for half in "AB")
    name = f"language_model.model.{query}.weight"
    assert torch.equal(made[name], (weights[name].float() + 2 * up @ down).bfloat16())


def test_a_lora_of_llavas_own_code_is_merged_too(tmp_path: Path, base: Path) -> None:
    lora = write_original_lora(LLAMA, tmp_path / "lora", tmp_path / "vicuna")
    merge(tmp_path / "vicuna", lora, tmp_path / "merged")
    (file,) = (tmp_path / "merged").glob("*.safetensors")
    made, wanted = load_file(file), load_file(base / "model.safetensors")
    assert made.keys() == wanted.keys()
    assert all(torch.allclose(made[name], wanted[name], atol=1e-6) for name in wanted)


def test_the_base_may_be_in_llavas_original_format(tmp_path: Path, base: Path) -> None:
    original = write_original(LLAMA, tmp_path / "original", write_tower(LLAMA, tmp_path / "tower"))
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["multi_modal_projector"])
    merge(base, adapter, tmp_path / "of hub")
    merge(original, adapter, tmp_path / "of original")
    made, wanted = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("of original", "of hub"))
    assert made.keys() == wanted.keys()
    assert all(torch.allclose(made[name], wanted[name], atol=1e-6) for name in wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "use_dora, which llava-api neither serves nor merges"),
        ({"target_modules": ["embed_tokens"]}, "changes more than llava-api can merge"),
    ],
)
def test_what_cannot_be_merged_is_named(base: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **options)
    assert words in refusal(base, adapter, tmp_path / "merged")


def test_a_module_that_is_missing_is_not_taken_from_the_base(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["multi_modal_projector"])
    held = load_file(adapter / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in held.items() if "linear_2.weight" not in name}
    save_file(half, adapter / "adapter_model.safetensors")
    assert "multi_modal_projector.linear_2.weight of its modules_to_save" in refusal(base, adapter, tmp_path / "merged")
    (adapter / "adapter_config.json").unlink()
    assert "an adapter whose training has ended" in refusal(base, adapter, tmp_path / "merged")


def test_a_head_that_is_also_the_embedding_is_not_left_out(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    weights = load_file(base / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    assert "the LoRA has an lm_head" in refusal(base, adapter, tmp_path / "merged")


def test_an_adapter_of_another_model_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    other = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in held.items()}
    save_file(other, adapter / "adapter_model.safetensors")
    assert "layers.9" in refusal(base, adapter, tmp_path / "merged")
    wider = {name: torch.zeros(4, TEXT_HIDDEN + 1) if ".lora_A." in name else half for name, half in held.items()}
    save_file(wider, adapter / "adapter_model.safetensors")
    assert "does not fit its base model" in refusal(base, adapter, tmp_path / "merged")
    assert "no folder" in refusal(base, tmp_path / "nothing", tmp_path / "merged")


def test_a_quantized_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter")
    main(["convert", str(base), str(tmp_path / "small"), "--quantize", "8bit"])
    assert "merge into the checkpoint that it was made from" in refusal(
        tmp_path / "small", adapter, tmp_path / "merged"
    )
