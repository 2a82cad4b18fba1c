"""Folders that are not all there: told before anything is loaded, by the name of the file."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_api.checkpoints.whole import check_whole
from llava_api.errors import StartupError
from tests.support.tiny_checkpoints import Tiny, write_hub, write_original, write_tower

TINY = Tiny("llama", "1.5")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and their index."""
    folder = write_hub(TINY, tmp_path_factory.mktemp("pristine") / "hub", "classic")
    whole = next(folder.glob("*.safetensors"))
    from safetensors.torch import load_file

    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    places = {}
    for number, half in enumerate(halves, start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        places |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "hub"))


def first(folder: Path) -> Path:
    return sorted(folder.glob("model-*"))[0]


def test_a_whole_one_is_measured(folder: Path) -> None:
    found = check_whole(folder)
    assert found.files == 2
    assert found.bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    numbers = found.floats.total()
    assert numbers > 100_000
    stored = found.in_memory("auto")
    assert stored == found.bytes
    assert found.in_memory("float32") - found.in_memory("bfloat16") == 2 * numbers
    assert found.in_memory("auto", quantized=True) < stored


def test_a_shard_of_the_index_is_missing(folder: Path) -> None:
    first(folder).unlink()
    with pytest.raises(StartupError, match=r"model-00001-of-00002\.safetensors is missing"):
        check_whole(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1, -1000])
def test_a_file_that_is_cut_short(folder: Path, kept: int) -> None:
    file = first(folder)
    os.truncate(file, kept if kept >= 0 else file.stat().st_size + kept)
    with pytest.raises(StartupError, match=r"model-00001-of-00002\.safetensors is cut short or damaged"):
        check_whole(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>not found</html>" * 10,
        (5).to_bytes(8, "little") + b"[1,2]",
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (21).to_bytes(8, "little") + b'{"a": {"dtype": "F"}}',
        (10**18).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_of_something_else(folder: Path, content: bytes) -> None:
    first(folder).write_bytes(content)
    with pytest.raises(StartupError, match="cut short or damaged"):
        check_whole(folder)


def test_more_than_the_header_says(folder: Path) -> None:
    with first(folder).open("ab") as opened:
        opened.write(b"more")
    with pytest.raises(StartupError, match="its header describes"):
        check_whole(folder)


def test_a_pointer_of_git_lfs(folder: Path) -> None:
    first(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(StartupError, match="git lfs pull"):
        check_whole(folder)


@pytest.mark.parametrize("place", [".", ".cache/huggingface/download"])
def test_a_download_that_is_not_finished(folder: Path, place: str) -> None:
    first(folder).unlink()
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / "abc.incomplete").write_bytes(b"half")
    with pytest.raises(StartupError, match=r"is missing.*download is not finished"):
        check_whole(folder)


def test_the_hubs_cache_keeps_unfinished_ones_elsewhere(pristine: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    shutil.copytree(pristine, snapshot)
    for file in snapshot.glob("*.safetensors*"):
        file.unlink()
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "abc.incomplete").touch()
    with pytest.raises(StartupError, match=r"has no weights.*not finished"):
        check_whole(snapshot)


def test_no_weights_at_all(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({}, folder / "training_args.bin")
    with pytest.raises(StartupError, match="has no weights"):
        check_whole(folder)


def test_weights_under_a_name_of_their_own(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for number, file in enumerate(sorted(folder.glob("model-*"))):
        file.rename(folder / f"llava{number}.safetensors")
    assert check_whole(folder).files == 2


def test_a_bin_file_that_is_cut_short(tmp_path: Path) -> None:
    original = write_original(TINY, tmp_path / "o", write_tower(TINY, tmp_path / "t"))
    assert check_whole(original).files == 2
    file = sorted(original.glob("*.bin"))[0]
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(StartupError, match=f"{file.name} is cut short"):
        check_whole(original)
    os.truncate(file, 0)
    with pytest.raises(StartupError, match=f"{file.name} is cut short"):
        check_whole(original)
