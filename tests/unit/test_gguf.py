"""GGUF files of a text model and its vision half: what is read of them, what is chosen for them, what is refused."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers import Tokenizer

from llava_api.chat.model import open_model
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.convert import convert
from llava_api.checkpoints.inspect import Sources, inspect_checkpoint
from llava_api.cli.doctor.model_checks import model_findings
from llava_api.cli.flags import demo_folder
from llava_api.cli.main import main
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tests.support.gguf_files import Kind, write_pair, write_vision
from tests.support.tiny_checkpoints import Tiny, Weights, write_hub

TEXTS = (
    "What is in this image?",
    " two  spaces   and three",
    "\n\ttabs\n\nand lines\n",
    "ünï¢öde 🦙 中文 \u200b",
    "the quick brown fox, 1234567 & (more)",
    "",
    " ",
    "</s",
)


@pytest.fixture(params=[Tiny("llama", "1.5"), Tiny("mistral", "1.6")], ids=["llama 1.5", "mistral 1.6"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Its mistral shares keys among heads, and has a newline and grids."""
    return write_hub(request.param, tmp_path / "hub", "classic")


def weights_of(folder: Path) -> Weights:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def converted(text: Path, target: Path) -> Weights:
    convert(inspect_checkpoint(str(text)), Sources(), target)
    return weights_of(target)


def as_stored(name: str, tensor: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What a file of ``kind`` keeps of a tensor."""
    matrix = tensor.ndim > 1 and name.startswith("language_model.")
    if kind == "Q8_0" and matrix:
        stored = GGMLQuantizationType.Q8_0
        tensor = torch.from_numpy(dequantize(quantize(tensor.numpy(), stored), stored))
    return tensor if kind == "F32" else tensor.half()


@pytest.mark.parametrize("old", [True, False], ids=["names of 2023", "names of today"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_every_tensor_arrives_under_the_hubs_name(tmp_path: Path, hub: Path, kind: Kind, old: bool) -> None:
    made = converted(write_pair(hub, tmp_path / "gguf", kind, old=old), tmp_path / "made")
    source = weights_of(hub)
    # The last of three vision layers is in no such file, and the last norm is not used.
    assert source.keys() - made.keys() == {name for name in source if ".encoder.layers.2." in name}
    used = {name for name in made if "post_layernorm" not in name}
    assert [name for name in used if not torch.equal(made[name], as_stored(name, source[name], kind))] == []


def test_transformers_loads_the_converted_folder(tmp_path: Path, hub: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    converted(write_pair(hub, tmp_path / "gguf"), tmp_path / "made")
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours, theirs = AutoProcessor.from_pretrained(tmp_path / "made"), AutoProcessor.from_pretrained(hub)
    # transformers 5.19 drops Mistral's dummy prefix before a space if the folder has no tokenizer.model.
    texts = [text for text in TEXTS if not text.startswith(" ")]
    assert ours.tokenizer(texts)["input_ids"] == theirs.tokenizer(texts)["input_ids"]


def test_the_tokenizer_and_the_settings_are_the_sources(tmp_path: Path, hub: Path) -> None:
    made, source = inspect_checkpoint(str(write_pair(hub, tmp_path / "gguf"))), inspect_checkpoint(str(hub))
    ours, theirs = (Tokenizer.from_str(checkpoint.tokenizer_json) for checkpoint in (made, source))
    for text in TEXTS:
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == wanted, text
    for name in ("vision", "text_model_type", "bos_token", "eos_token", "eos_token_ids", "image_token_id", "pinpoints"):
        assert getattr(made, name) == getattr(source, name), name
    for name in ("image_mean", "image_std", "tile_tokens", "context_length", "stored_dtype"):
        assert getattr(made, name) == getattr(source, name), name
    text, wanted = made.config["text_config"], source.config["text_config"]
    assert {name: text[name] for name in text if name in wanted} == {
        name: wanted[name] for name in text if name in wanted
    }


@pytest.mark.parametrize(("kind", "usual"), [("F16", None), ("Q8_0", "8bit"), ("Q4_0", "4bit")])
def test_a_file_is_served_in_about_its_own_size(tmp_path: Path, kind: Kind, usual: str | None) -> None:
    text = str(write_pair(demo_folder() / "llava-tiny-1.5", tmp_path, kind))
    assert open_model(text, ("m",), Settings()).precision == usual
    assert open_model(text, ("m",), Settings(load_8bit=True)).precision == "8bit"
    assert open_model(text, ("m",), Settings(load_4bit=True)).precision == "4bit"


def test_a_second_start_converts_nothing(tmp_path: Path) -> None:
    write_pair(demo_folder() / "llava-tiny-1.6", tmp_path / "gguf", "F16")
    first, second = (
        # The folder of both files names them as well.
        ready_checkpoint(inspect_checkpoint(str(tmp_path / "gguf")), Sources(), str(tmp_path / "cache")).folder
        for _ in range(2)
    )
    assert first == second
    assert [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")] == [first]


def test_the_vision_half_of_another_model_is_refused(tmp_path: Path) -> None:
    text = write_pair(demo_folder() / "llava-tiny-1.5", tmp_path / "gguf")
    config = json.loads((demo_folder() / "llava-tiny-1.5/config.json").read_text())
    vision = {**weights_of(demo_folder() / "llava-tiny-1.5")}
    for name in ("weight", "bias"):
        vision[f"multi_modal_projector.linear_2.{name}"] = torch.cat(
            [vision[f"multi_modal_projector.linear_2.{name}"]] * 2
        )
    write_vision(tmp_path / "gguf/mmproj-model-f16.gguf", config, vision, "F16", old=True)
    with pytest.raises(StartupError, match=r"its projector makes vectors of 256 numbers, and .* takes 128"):
        inspect_checkpoint(str(text))


def cut(folder: Path, text: Path) -> None:
    text.write_bytes(text.read_bytes()[:-1000])


def cut_in_its_metadata(folder: Path, text: Path) -> None:
    text.write_bytes(text.read_bytes()[:5000])


def vision_cut(folder: Path, text: Path) -> None:
    cut(folder, folder / "mmproj-model-f16.gguf")


def no_gguf(folder: Path, text: Path) -> None:
    text.write_bytes(b"PK\x03\x04" + text.read_bytes()[4:])


def lfs_pointer(folder: Path, text: Path) -> None:
    text.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def no_mmproj(folder: Path, text: Path) -> None:
    (folder / "mmproj-model-f16.gguf").unlink()


def two_mmproj(folder: Path, text: Path) -> None:
    shutil.copy(folder / "mmproj-model-f16.gguf", folder / "mmproj-model-q8.gguf")


def text_as_mmproj(folder: Path, text: Path) -> None:
    shutil.copy(text, folder / "mmproj-model-f16.gguf")


def vision_as_text(folder: Path, text: Path) -> None:
    shutil.copy(folder / "mmproj-model-f16.gguf", text)


UINT32, INT32, FLOAT32 = ((kind).to_bytes(4, "little") for kind in (4, 5, 6))
"""Types of values in the metadata."""


def value_set(file: Path, key: str, kind: bytes, value: bytes) -> None:
    """Overwrite a number of the metadata and its type, by one of the same size."""
    content = file.read_bytes()
    place = content.index(len(key).to_bytes(8, "little") + key.encode()) + 8 + len(key)
    file.write_bytes(content[:place] + kind + value + content[place + 8 :])


def number_set(text: Path, key: str, value: int) -> None:
    value_set(text, key, UINT32, value.to_bytes(4, "little"))


def rope_that_is_no_number(folder: Path, text: Path) -> None:
    value_set(text, "llama.rope.freq_base", FLOAT32, struct.pack("<f", math.nan))


def no_epsilon(folder: Path, text: Path) -> None:
    value_set(text, "llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 0))


def vision_epsilon_that_is_no_number(folder: Path, text: Path) -> None:
    key = "clip.vision.attention.layer_norm_epsilon"
    value_set(folder / "mmproj-model-f16.gguf", key, FLOAT32, struct.pack("<f", math.nan))


def fewer_than_no_vision_heads(folder: Path, text: Path) -> None:
    value_set(folder / "mmproj-model-f16.gguf", "clip.vision.attention.head_count", INT32, b"\xff" * 4)


def vision_heads_that_do_not_divide(folder: Path, text: Path) -> None:
    number_set(folder / "mmproj-model-f16.gguf", "clip.vision.attention.head_count", 7)


def empty_tensor(folder: Path, text: Path) -> None:
    content, name = text.read_bytes(), b"blk.0.attn_q.weight"
    sizes = content.index(name) + len(name) + 4
    text.write_bytes(content[:sizes] + bytes(16) + content[sizes + 16 :])


def repeated_piece(folder: Path, text: Path) -> None:
    length = (6).to_bytes(8, "little")
    text.write_bytes(text.read_bytes().replace(length + b"<0x41>", length + b"<0x42>", 1))


def heads_that_do_not_divide(folder: Path, text: Path) -> None:
    number_set(text, "llama.attention.head_count", 3)


def shared_heads_that_do_not_divide(folder: Path, text: Path) -> None:
    number_set(text, "llama.attention.head_count_kv", 3)


def with_entry(text: Path, kind: int, value: bytes) -> None:
    """Put an entry of this type before the others of the metadata."""
    content = bytearray(text.read_bytes())
    content[16:24] = (int.from_bytes(content[16:24], "little") + 1).to_bytes(8, "little")
    content[24:24] = (1).to_bytes(8, "little") + b"a" + kind.to_bytes(4, "little") + value
    text.write_bytes(content)


def endless_array(folder: Path, text: Path) -> None:
    with_entry(text, 9, (4).to_bytes(4, "little") + (2**62).to_bytes(8, "little"))


def arrays_in_arrays(folder: Path, text: Path) -> None:
    with_entry(text, 9, ((9).to_bytes(4, "little") + (1).to_bytes(8, "little")) * 2000)


def long_piece(folder: Path, text: Path) -> None:
    content = text.read_bytes()
    length, piece = (6).to_bytes(8, "little"), b"<0x41>"
    assert length + piece in content
    text.write_bytes(content.replace(length + piece, (3014).to_bytes(8, "little") + b"ab" * 1507, 1))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, "ggml-model-f32.gguf is damaged, only half downloaded"),
        (cut_in_its_metadata, "ggml-model-f32.gguf is damaged, only half downloaded"),
        (vision_cut, "mmproj-model-f16.gguf is damaged, only half downloaded"),
        (no_gguf, "ggml-model-f32.gguf is not a GGUF file"),
        (lfs_pointer, "git lfs pull"),
        (no_mmproj, r"one \*mmproj\*.gguf beside .*/ggml-model-f32.gguf, and there is none; name it with --mmproj"),
        (two_mmproj, "several: mmproj-model-f16.gguf, mmproj-model-q8.gguf; name it with --mmproj"),
        (text_as_mmproj, "mmproj-model-f16.gguf is no vision half"),
        (endless_array, "ggml-model-f32.gguf is damaged, only half downloaded"),
        (arrays_in_arrays, "ggml-model-f32.gguf is damaged, only half downloaded"),
        (long_piece, "ggml-model-f32.gguf has more than 300,000 tokens, or one of more than 2,000 letters"),
        (heads_that_do_not_divide, r"sizes in ggml-model-f32.gguf cannot be read \(.*attention heads"),
        (shared_heads_that_do_not_divide, "has 4 attention heads, which cannot share 3 of keys"),
        (rope_that_is_no_number, "ggml-model-f32.gguf is damaged: its llama.rope.freq_base is nan"),
        (no_epsilon, "damaged: its llama.attention.layer_norm_rms_epsilon is 0.0"),
        (vision_epsilon_that_is_no_number, "damaged: its clip.vision.attention.layer_norm_epsilon is nan"),
        (fewer_than_no_vision_heads, "mmproj-model-f16.gguf is damaged: its clip.vision.attention.head_count is -1"),
        (vision_heads_that_do_not_divide, "damaged: its clip.vision.attention.head_count is 7"),
        (empty_tensor, "ggml-model-f32.gguf is damaged: its tensor blk.0.attn_q.weight has no numbers"),
        (repeated_piece, "ggml-model-f32.gguf is damaged: some of its tokens are the same"),
        (vision_as_text, r"is the vision half \(mmproj\): name the text model's file"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path, Path], None], sentence: str
) -> None:
    text = write_pair(demo_folder() / "llava-tiny-1.5", tmp_path / "gguf")
    damage(tmp_path / "gguf", text)
    with pytest.raises(StartupError, match=sentence) as refused:
        ready_checkpoint(inspect_checkpoint(str(text)), Sources(), str(tmp_path / "cache"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache").exists()
    assert "fail" in {finding.state for finding in model_findings(str(text), Settings(), False)}


def test_the_files_are_named_with_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_pair(demo_folder() / "llava-tiny-1.5", tmp_path / "gguf", "Q4_0")
    vision = (tmp_path / "gguf/mmproj-model-f16.gguf").rename(tmp_path / "vision-half")
    # As Ollama keeps files: without an ending.
    text = text.rename(tmp_path / "sha256-1234")
    main(["inspect", str(text), "--mmproj", str(vision), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["prompt_family"], facts["image_mode"]) == ("GGUF", "vicuna_v1", "pad")
    assert facts["read_as"].startswith("LLaVA-1.5, because")
    assert facts["weights"].startswith("2 files")
    for quantize_to, method in ((["--quantize", "none"], None), ([], "compressed-tensors")):
        target = tmp_path / f"made-{method}"
        main(["convert", str(text), str(target), "--mmproj", str(vision), *quantize_to])
        assert inspect_checkpoint(str(target)).quantization == method
    found = {
        f.check: f.state for f in model_findings(str(text), Settings(mmproj=str(vision), check_memory=False), False)
    }
    assert found["weights"] == found["model"] == "ok"


def test_another_quantization_beside_a_gguf_file_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    text = write_pair(demo_folder() / "llava-tiny-1.5", tmp_path / "gguf", "Q4_0")
    with pytest.raises(StartupError, match="--quantization fp8: GGUF files of this size are quantized to 4 bit"):
        open_model(str(text), ("m",), Settings(quantization="fp8"))
