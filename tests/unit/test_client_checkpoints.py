"""Checkpoint folders as trainings, merges and conversions leave them: served, or refused by a sentence to follow.

serve, doctor and inspect read a folder by the same function, before the engine is started.
"""

import argparse
import json
from pathlib import Path

import pytest

from llava_api.chat.model import open_model
from llava_api.checkpoints.inspect import Sources, inspect_checkpoint
from llava_api.checkpoints.whole import check_whole
from llava_api.cli import inspect
from llava_api.cli.doctor.model_checks import model_findings
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tests.support.tiny_checkpoints import Tiny, write_hub, write_original, write_original_lora, write_tower
from tests.unit.test_damaged_checkpoints import edit

LLAMA = Tiny("llama", "1.5")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return write_hub(LLAMA, tmp_path / "hub", "classic")


def refusal(folder: Path) -> str:
    """What serve, doctor and inspect say alike."""
    settings = Settings()
    with pytest.raises(StartupError) as refused:
        open_model(str(folder), ("tiny",), settings)
    (finding,) = model_findings(str(folder), settings, on_gpu=False)
    assert (finding.state, finding.found) == ("fail", str(refused.value))
    parser = argparse.ArgumentParser()
    inspect.add_parser(parser.add_subparsers())
    with pytest.raises(StartupError) as inspected:
        inspect.run(parser.parse_args(["inspect", str(folder)]))
    assert str(inspected.value) == str(refused.value)
    return str(refused.value)


def test_ck_hub_vocab(hub: Path) -> None:
    rows = json.loads((hub / "config.json").read_text())["text_config"]["vocab_size"]
    edit(hub, "config.json", text_config__vocab_size=rows - 8)
    assert refusal(hub) == (
        f"config.json says text_config.vocab_size {rows - 8}, and the checkpoint's embedding has {rows} rows: "
        f"set it to {rows}"
    )


def test_ck_hub_imgtok_big(hub: Path) -> None:
    config = json.loads((hub / "config.json").read_text())
    right, rows = config["image_token_index"], config["text_config"]["vocab_size"]
    edit(hub, "config.json", image_token_index=999_999)
    assert refusal(hub) == (
        f"config.json says image_token_index 999999, beyond the vocabulary of {rows}, and the checkpoint's tokenizer "
        f"has <image> at {right}: set it to {right}"
    )
    edit(hub, "config.json", image_token_index=right - 1)
    assert "vocabulary" not in refusal(hub)


def test_ck_hub_noarch(hub: Path) -> None:
    whole = inspect_checkpoint(str(hub))
    edit(hub, "config.json", architectures=None)
    assert inspect_checkpoint(str(hub)).vision == whole.vision
    edit(hub, "config.json", model_type="another")
    assert "architecture is none" in refusal(hub)


def test_ck_hub_stale_index(hub: Path) -> None:
    (file,) = hub.glob("*.safetensors")
    file.rename(hub / "model.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    assert check_whole(hub).files == 1
    (hub / names[0]).write_bytes((hub / "model.safetensors").read_bytes())
    with pytest.raises(StartupError, match=f"{names[1]} is missing"):
        check_whole(hub)


def test_ck_hub_nopre(hub: Path) -> None:
    (hub / "preprocessor_config.json").unlink(missing_ok=True)
    (hub / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(StartupError, match="copy it from the checkpoint that this one was made from"):
        open_model(str(hub), ("tiny",), Settings()).to_load()


def test_ck_v1(tmp_path: Path) -> None:
    folder = write_original(LLAMA, tmp_path / "v1", write_tower(LLAMA, tmp_path / "tower"))
    config = json.loads((folder / "config.json").read_text())
    del config["image_aspect_ratio"]
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(str(folder), ("tiny",), Settings())
    assert model.image_mode.name == "square"
    assert model.image_mode_reason == "its config.json has no image_aspect_ratio, and LLaVA's code takes square then"


def test_ck_projector_convert(tmp_path: Path) -> None:
    folder = write_original(LLAMA, tmp_path / "stage-1", write_tower(LLAMA, tmp_path / "tower"))
    for file in (*folder.glob("*.bin"), *folder.glob("*.index.json")):
        file.unlink()
    (folder / "mm_projector.bin").write_bytes(b"PK")
    assert "holds a projector alone (mm_projector.bin)" in refusal(folder)
    assert "serve the checkpoint of the second stage" in refusal(folder)


def test_ck_lora_nononlora(tmp_path: Path) -> None:
    lora = write_original_lora(LLAMA, tmp_path / "lora", tmp_path / "base")
    (lora / "non_lora_trainables.bin").unlink()
    assert "a checkpoint from the middle of one (checkpoint-1000) has none" in refusal(lora)
    with pytest.raises(StartupError, match="the folder of the finished training"):
        inspect_checkpoint(str(lora), Sources(model_base=str(tmp_path / "base")))
