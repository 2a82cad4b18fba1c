"""Where a converted checkpoint is written: by one at a time, whole or not at all, and in how much memory."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_api.checkpoints import cache, shards
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.claim import claimed, made_whole
from llava_api.checkpoints.convert import convert
from llava_api.checkpoints.inspect import Sources, inspect_checkpoint
from llava_api.errors import StartupError
from tests.support.tiny_checkpoints import Tiny, Weights, write_original, write_tower

LLAMA = Tiny("llama", "1.5")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(LLAMA, tmp_path / "original", write_tower(LLAMA, tmp_path / "tower"))


def convert_folder(source: Path, target: Path) -> None:
    convert(inspect_checkpoint(str(source)), Sources(), target)


def left_overs(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".partial" in path.name]


def test_of_two_conversions_to_one_folder_the_second_is_told(tmp_path: Path, original: Path) -> None:
    target = tmp_path / "target"
    with claimed(target, wait=False), made_whole(target) as scratch:
        (scratch / "half").touch()
        with pytest.raises(StartupError, match="is being written by another llava-api"):
            convert_folder(original, target)
        # What the first is writing is still there.
        assert (scratch / "half").is_file()
    assert [path.name for path in target.iterdir()] == ["half"]
    with pytest.raises(StartupError, match="exists already"):
        convert_folder(original, target)


KILLED = """
import os, signal, sys
from pathlib import Path
from llava_api.checkpoints.claim import claimed, made_whole
target = Path(sys.argv[1])
with claimed(target, wait=False), made_whole(target) as scratch:
    (scratch / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_conversion_left_is_cleared_by_the_next(tmp_path: Path, original: Path) -> None:
    target = tmp_path / "target [1]"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(left_overs(tmp_path)) == 1
    convert_folder(original, target)
    assert (target / "manifest.json").is_file()
    assert left_overs(tmp_path) == []


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a program: a write ends before its end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_is_one_sentence(tmp_path: Path, original: Path) -> None:
    target = tmp_path / "made" / "target"
    checkpoint = inspect_checkpoint(str(original))
    with files_no_larger_than(100_000), pytest.raises(StartupError, match="File too large") as refused:
        convert(checkpoint, Sources(), target)
    assert str(refused.value).endswith("or name another folder")
    assert not target.exists()
    assert left_overs(target.parent) == []
    with files_no_larger_than(100_000), pytest.raises(StartupError, match="with --cache-dir"):
        ready_checkpoint(checkpoint, Sources(), str(tmp_path / "cache"))
    assert left_overs(tmp_path / "cache") == []


def test_every_file_is_as_the_umask_wants_it(tmp_path: Path, original: Path) -> None:
    before = os.umask(0o027)
    try:
        convert_folder(original, tmp_path / "target")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "target").iterdir()}
    assert set(modes.values()) == {0o640}
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o750


def test_a_whole_cache_is_used_where_nothing_can_be_written(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    made = ready_checkpoint(inspect_checkpoint(str(original)), Sources(), str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "claimed", refused)
    again = ready_checkpoint(inspect_checkpoint(str(original)), Sources(), str(tmp_path / "cache"))
    assert again.folder == made.folder
    with pytest.raises(StartupError, match=r"Read-only file system.*--cache-dir"):
        ready_checkpoint(inspect_checkpoint(str(original)), Sources(), str(tmp_path / "other"))


# Memory

SHARD_BYTES, SHARDS = 24_000_000, 8
PEAK = Path("/proc/self/clear_refs")
"""A 5 written to it resets ``VmHWM``."""


def write_large(original: Path, files: str) -> None:
    """Make the checkpoint one of ``SHARDS`` layers, a layer a file."""
    config = json.loads((original / "config.json").read_text())
    config |= {"num_hidden_layers": SHARDS, "intermediate_size": SHARD_BYTES // (3 * 4 * config["hidden_size"])}
    (original / "config.json").write_text(json.dumps(config))
    small: Weights = {}
    for file in sorted(original.glob("pytorch_model*.bin")):
        small |= torch.load(file)
        file.unlink()
    (original / "pytorch_model.bin.index.json").unlink()
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    for number in range(SHARDS):
        layer = {
            name.replace("layers.0.", f"layers.{number}."): tensor
            for name, tensor in small.items()
            if "layers.0." in name and ".mlp." not in name
        }
        for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            layer[f"model.layers.{number}.mlp.{name}_proj.weight"] = torch.ones(shape)
        if number == 0:
            layer |= {name: tensor for name, tensor in small.items() if ".layers." not in name}
        stem = f"{number + 1:05}-of-{SHARDS:05}"
        if files == "bin":
            torch.save(layer, original / f"pytorch_model-{stem}.bin")
        else:
            save_file(layer, original / f"model-{stem}.safetensors")


def memory(name: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most since it was reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="this system does not tell a program's largest size")
@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_memory_holds_about_two_shards_however_many_there_are(
    tmp_path: Path, original: Path, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGEST_SHARD", SHARD_BYTES + SHARD_BYTES // 10)
    # Once before, so that no library is loaded while it is measured.
    convert_folder(original, tmp_path / "small")
    write_large(original, files)
    before = memory("VmRSS")
    PEAK.write_text("5")
    convert_folder(original, tmp_path / "target")
    assert len(list((tmp_path / "target").glob("*.safetensors"))) >= SHARDS
    assert memory("VmHWM") - before < 2.5 * SHARD_BYTES
