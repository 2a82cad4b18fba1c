"""The original format on disk: what is converted, what is refused, what a second start finds."""

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.convert import convert
from llava_api.checkpoints.inspect import Checkpoint, Sources, inspect_checkpoint
from llava_api.checkpoints.size import LINEAR_LAYERS, PRECISIONS, Precision
from llava_api.errors import StartupError
from tests.support.tiny_checkpoints import (
    Tiny,
    source_model,
    write_hub,
    write_original,
    write_original_lora,
    write_tower,
)

LLAMA = Tiny("llama", "1.5")
NEXT = Tiny("mistral", "1.6")


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    return write_tower(LLAMA, tmp_path / "tower")


@pytest.fixture
def original(tmp_path: Path, tower: Path) -> Path:
    return write_original(LLAMA, tmp_path / "original", tower)


def converted(folder: Path, cache: Path, sources: Sources | None = None) -> Checkpoint:
    sources = sources or Sources()
    return ready_checkpoint(inspect_checkpoint(str(folder), sources), sources, str(cache))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        # Copies: load_file maps the file, and some tests cut it short.
        made |= {name: tensor.clone() for name, tensor in load_file(file).items()}
    return made


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tiny", [LLAMA, NEXT], ids=["llama 1.5", "mistral 1.6"])
@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_every_tensor_arrives_under_the_hubs_name(tmp_path: Path, tiny: Tiny, files: str) -> None:
    original = write_original(tiny, tmp_path / "o", write_tower(tiny, tmp_path / "tower"), files=files)  # type: ignore[arg-type]
    hub = write_hub(tiny, tmp_path / "hub", "classic")
    made = converted(original, tmp_path / "cache")
    assert made.format == "hub"
    assert same_tensors(tensors_of(made.folder), tensors_of(hub))
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tensors_of(hub).keys()
    assert made.image_token_id == tiny.image_token_id


def test_transformers_loads_the_converted_folder(tmp_path: Path, original: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made = converted(original, tmp_path / "cache")
    model, report = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    wanted = source_model(LLAMA).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert AutoProcessor.from_pretrained(made.folder).tokenizer.convert_tokens_to_ids("<image>") == made.image_token_id


def test_a_second_start_converts_nothing(tmp_path: Path, original: Path) -> None:
    first = converted(original, tmp_path / "cache").folder
    written = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    second = converted(original, tmp_path / "cache").folder
    assert second == first
    assert {file.name: file.stat().st_mtime_ns for file in second.iterdir()} == written


def test_a_changed_source_is_converted_anew(tmp_path: Path, original: Path) -> None:
    first = converted(original, tmp_path / "cache").folder
    shard = next(original.glob("*.bin"))
    facts = shard.stat()
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000_000))
    assert converted(original, tmp_path / "cache").folder != first


def test_a_damaged_copy_is_made_anew(tmp_path: Path, original: Path) -> None:
    folder = converted(original, tmp_path / "cache").folder
    good = tensors_of(folder)
    victim = next(folder.glob("model-00001*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:1000])
    assert converted(original, tmp_path / "cache").folder == folder
    assert same_tensors(tensors_of(folder), good)


def test_two_starts_at_once_convert_once(tmp_path: Path, original: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: converted(original, tmp_path / "cache").folder, range(4)))
    assert len(set(folders)) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir() if ".partial" in path.name] == []


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo owned > /tmp/llava-api-owned",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, original: Path) -> None:
    shard = sorted(original.glob("*.bin"))[0]
    torch.save({**torch.load(shard), "model.evil": Evil()}, shard)
    with pytest.raises(StartupError, match=rf"{shard.name} is refused"):
        converted(original, tmp_path / "cache")
    shard.write_bytes(pickle.dumps({"model.evil": Evil()}))
    with pytest.raises(StartupError, match=shard.name):
        converted(original, tmp_path / "cache")
    assert not Path("/tmp/llava-api-owned").exists()
    assert list((tmp_path / "cache").glob("[!.]*")) == []


def test_a_missing_file_is_named(tmp_path: Path, original: Path) -> None:
    last = sorted(original.glob("*.bin"))[-1]
    last.unlink()
    with pytest.raises(StartupError, match=f"{last.name} is missing"):
        converted(original, tmp_path / "cache")
    # Without the index the numbers of the others tell.
    (original / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(StartupError, match=f"{last.name} is missing"):
        converted(original, tmp_path / "cache")


@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_a_half_downloaded_file_is_named(tmp_path: Path, tower: Path, files: str) -> None:
    original = write_original(LLAMA, tmp_path / "o", tower, files=files)  # type: ignore[arg-type]
    shard = sorted(original.glob("*.bin" if files == "bin" else "*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-5000])
    with pytest.raises(StartupError, match=shard.name):
        converted(original, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("[!.]*")) == []


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, original: Path) -> None:
    shard = sorted(original.glob("*.bin"))[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(StartupError, match="git lfs pull"):
        converted(original, tmp_path / "cache")


def test_an_incomplete_set_of_tensors_is_refused(tmp_path: Path, tower: Path) -> None:
    original = write_original(LLAMA, tmp_path / "o", tower, files="safetensors", shards=1)
    tensors = load_file(original / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn" not in name},
        original / "model.safetensors",
    )
    with pytest.raises(StartupError, match=r"layers\.1\.self_attn"):
        converted(original, tmp_path / "cache")


def test_a_folder_without_weights_says_so(tmp_path: Path, original: Path) -> None:
    for file in original.glob("pytorch_model*"):
        file.unlink()
    with pytest.raises(StartupError, match="no weights"):
        converted(original, tmp_path / "cache")


def test_the_tower_is_found_beside_the_checkpoint_or_named(tmp_path: Path, original: Path, tower: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    config["mm_vision_tower"] = "/mnt/training/machine/some-tower"
    (original / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match="--vision-tower"):
        converted(original, tmp_path / "cache")
    assert converted(original, tmp_path / "cache", Sources(vision_tower=str(tower))).format == "hub"
    shutil.copytree(tower, original.parent / "some-tower")
    assert converted(original, tmp_path / "cache2").format == "hub"


def test_a_known_tower_needs_no_files_to_be_described(original: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    config["mm_vision_tower"] = "/data/openai/clip-vit-large-patch14-336"
    (original / "config.json").write_text(json.dumps(config))
    found = inspect_checkpoint(str(original))
    assert (found.tile_pixels, found.patch_pixels, found.tile_tokens) == (336, 14, 576)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mm_projector_type", "mlp4x_gelu"),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_patch_merge_type", "maxpool2x2"),
        ("image_aspect_ratio", "anyres_max_9"),
        ("mm_resampler_type", "perceiver"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(original: Path, name: str, value: str) -> None:
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(StartupError, match=f"{name} {value}"):
        inspect_checkpoint(str(original))


def test_a_lora_merges_into_its_base(tmp_path: Path, tower: Path) -> None:
    lora = write_original_lora(LLAMA, tmp_path / "lora", tmp_path / "base", tower)
    with pytest.raises(StartupError, match=r"--model-base \(lmsys/vicuna-7b-v1\.5\)"):
        inspect_checkpoint(str(lora))
    made = tensors_of(converted(lora, tmp_path / "cache", Sources(model_base=str(tmp_path / "base"))).folder)
    wanted = tensors_of(write_hub(LLAMA, tmp_path / "hub", "classic"))
    assert made.keys() == wanted.keys()
    assert all(torch.allclose(made[name], wanted[name], atol=1e-6) for name in wanted)


def test_a_lora_on_the_wrong_base_is_refused(tmp_path: Path, tower: Path) -> None:
    lora = write_original_lora(LLAMA, tmp_path / "lora", tmp_path / "base", tower)
    weights = load_file(lora / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.1.", "layers.9."): value for name, value in weights.items()},
        lora / "adapter_model.safetensors",
    )
    with pytest.raises(StartupError, match=r"layers\.9"):
        converted(lora, tmp_path / "cache", Sources(model_base=str(tmp_path / "base")))


# Quantized copies


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_quantized_weights_are_near_the_sources(tmp_path: Path, precision: Precision) -> None:
    hub = write_hub(LLAMA, tmp_path / "hub", "classic")
    convert(inspect_checkpoint(str(hub)), Sources(), tmp_path / "made", precision)
    made, source = tensors_of(tmp_path / "made"), tensors_of(hub)
    quantized = [name for name in source if LINEAR_LAYERS.fullmatch(name)]
    assert len(quantized) == 7 * source_model(LLAMA).config.text_config.num_hidden_layers
    for name in quantized:
        scale = made.pop(f"{name}_scale").float()
        if precision == "8bit":
            near = made.pop(name).float() * scale
        else:
            assert made.pop(f"{name}_shape").tolist() == list(source[name].shape)
            packed = made.pop(f"{name}_packed")
            levels = (packed[:, :, None] >> torch.arange(0, 32, 4) & 15).flatten(1) - 8
            scale = scale.repeat_interleave(levels.shape[1] // scale.shape[1], dim=1)
            near = levels * scale
        # Half a step, and a little more where the largest value of a row has no level of its own.
        assert bool(((near - source[name]).abs() <= 0.51 * scale + 1e-6).float().mean() > 0.99)
    assert all(torch.equal(tensor, source[name].to(torch.bfloat16)) for name, tensor in made.items())
    assert made.keys() == source.keys() - set(quantized)
    assert inspect_checkpoint(str(tmp_path / "made")).quantization == "compressed-tensors"


def test_hub_and_original_format_are_quantized_to_the_same(tmp_path: Path, original: Path) -> None:
    hub = write_hub(LLAMA, tmp_path / "hub", "transformers")
    for source, name in ((hub, "one"), (original, "other")):
        convert(inspect_checkpoint(str(source)), Sources(), tmp_path / name, "8bit")
    assert same_tensors(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other"))


def test_what_is_quantized_already_is_not_quantized_again(tmp_path: Path) -> None:
    hub = write_hub(LLAMA, tmp_path / "hub", "classic")
    convert(inspect_checkpoint(str(hub)), Sources(), tmp_path / "made", "8bit")
    again = inspect_checkpoint(str(tmp_path / "made"))
    with pytest.raises(StartupError, match="quantized already"):
        convert(again, Sources(), tmp_path / "again", "4bit")


def test_each_precision_has_a_copy_of_its_own(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(str(write_hub(LLAMA, tmp_path / "hub", "classic")))
    folders = [ready_checkpoint(checkpoint, Sources(), str(tmp_path / "cache"), wanted).folder for wanted in PRECISIONS]
    assert folders[0] != folders[1]
    assert ready_checkpoint(checkpoint, Sources(), str(tmp_path / "cache"), "8bit").folder == folders[0]


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_transformers_loads_the_quantized_folder(tmp_path: Path, precision: Precision) -> None:
    from transformers import AutoModelForImageTextToText

    hub = write_hub(LLAMA, tmp_path / "hub", "classic")
    convert(inspect_checkpoint(str(hub)), Sources(), tmp_path / "made", precision)
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        logits, wanted = model(input_ids=ids).logits.float(), source_model(LLAMA)(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(logits[0], wanted[0]).mean() > {"8bit": 0.99, "4bit": 0.8}[precision]
