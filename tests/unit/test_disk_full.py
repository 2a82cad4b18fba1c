"""A disk that is full, or becomes so, while a checkpoint is converted: one sentence, and nothing left behind."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.small_disk import small_disk as mount
from tests.support.tiny_checkpoints import Tiny, write_original, write_tower

TINY = Tiny("llama", "1.5")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return write_original(TINY, folder / "o", write_tower(TINY, folder / "t"), shards=1)


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many bytes."""
    with ExitStack() as mounted:
        yield lambda size: mounted.enter_context(mount(tmp_path / "small", size))


def convert(source: Path, target: Path, largest_file: int | None = None) -> "subprocess.CompletedProcess[str]":
    def bounded() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "llava_api", "convert", str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=bounded)


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    original: Path, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(weight_bytes(original) // 2)
    done = convert(original, place / "made")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert f"the converted checkpoint needs {weight_bytes(original) / 1e6:.1f} MB and {place} has" in message
    assert "Traceback" not in done.stderr
    assert left_in(place) == []


def test_a_disk_that_is_full_before_the_end(original: Path, small_disk: Callable[[int], Path]) -> None:
    # Room for the source's weights and not for the vision tower, which the converted folder holds too.
    place = small_disk(int(weight_bytes(original) * 1.06))
    done = convert(original, place / "made")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"llava-api: cannot write the converted checkpoint to {place / 'made'} (")
    assert "No space left on device" in message
    assert f"room for {weight_bytes(original) / 1e6:.1f} MB" in message
    assert "Traceback" not in done.stderr
    assert left_in(place) == []


@pytest.mark.parametrize("largest_file", [50_000, 100_000])
def test_files_that_may_not_become_so_large(original: Path, tmp_path: Path, largest_file: int) -> None:
    (tmp_path / "here").mkdir()
    done = convert(original, tmp_path / "here" / "made", largest_file)
    assert done.returncode == 1
    assert "cannot write the converted checkpoint" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert left_in(tmp_path / "here") == []


def test_a_temporary_folder_that_is_full(original: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = convert(original, tmp_path / "here" / "made", 0)
    assert done.returncode == 1
    assert "no room in the temporary folder (TMPDIR)" in done.stderr.splitlines()[-1]
    assert left_in(tmp_path / "here") == []
