"""Finds and reads the files of a checkpoint, without torch and transformers."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava_api.errors import StartupError

SMALL_FILES = ("*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges.txt")
WEIGHT_FILES = ("*.safetensors", "*.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")
LFS_POINTER = b"version https://git-lfs"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint; empty if the file is missing. Raises StartupError if it cannot be read."""
    path = folder / name
    if not path.is_file():
        return {}
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith(LFS_POINTER.decode()):
            raise lfs_pointer(name) from error
        raise StartupError(f"{name} of the checkpoint is not valid JSON") from error
    except OSError as error:
        raise StartupError(f"{name} of the checkpoint cannot be read ({error.strerror})") from error
    if not isinstance(data, dict):
        raise StartupError(f"{name} of the checkpoint is not a JSON object")
    return data


def locate(
    model: str,
    download_dir: str | None = None,
    revision: str | None = None,
    *,
    weights: bool = False,
    files: Sequence[str] = SMALL_FILES,
) -> Path:
    """The folder of ``model``: ``model`` itself if it is a folder, else fetched from the hub.

    ``download_dir``: None for the hub library's own cache; ``revision``: branch, tag or commit; ``weights``: fetch the
    weights too, besides ``files``. Raises StartupError if there is neither.
    """
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:
        raise StartupError(f"{model[:80]!r} is no folder's name ({type(error).__name__})") from error
    if folder.suffix == ".gguf":
        raise StartupError(f"there is no file {model}")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StartupError(
            f"there is no folder or file {model}, and it is no hub id of the form owner/name: give the path of a "
            "checkpoint folder or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*files, *(WEIGHT_FILES if weights else ())]
    try:
        fetched: str = snapshot_download(model, revision=revision, cache_dir=download_dir, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StartupError(
            f"the hub has no checkpoint {model} for this machine ({type(error).__name__}): check the name, the "
            "network, and HF_TOKEN if the checkpoint is gated"
        ) from error
    return Path(fetched)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, safetensors before ``.bin``, in order; empty if it has none.

    Raises StartupError with the name of a file that is missing by the index or by the numbering of the others.
    """
    for index in INDEXES:
        weight_map = read_json(folder, index).get("weight_map")
        if isinstance(weight_map, dict):
            files = [folder / name for name in sorted(plain_names(index, weight_map.values()))]
            if not is_stale(folder, files):
                return present(files)
    for whole_file, shards in (
        ("model.safetensors", "model-*.safetensors"),
        ("pytorch_model.bin", "pytorch_model-*.bin"),
    ):
        if (folder / whole_file).is_file():
            return present([folder / whole_file])
        found = sorted(folder.glob(shards))
        if found:
            return present([folder / name for name in every_shard(found[0].name)])
    return []


def is_stale(folder: Path, files: list[Path]) -> bool:
    """Whether an index was left behind when its files were merged: none of them is there, and the whole file is."""
    return (folder / "model.safetensors").is_file() and not any(file.is_file() for file in files)


def plain_names(index: str, names: Iterable[object]) -> set[str]:
    """The file names of an index. Raises StartupError for one that is no name or leads out of the folder."""
    found = set()
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise StartupError(f"{index} of the checkpoint names something that is not a file in its folder")
        found.add(name)
    return found


def every_shard(name: str) -> list[str]:
    """``x-00001-of-00002.bin`` -> the names of both."""
    parts = SHARD.fullmatch(name)
    if parts is None:
        return [name]
    count = int(parts["count"])
    return [f"{parts['stem']}-{number:05d}-of-{count:05d}{parts['ending']}" for number in range(1, count + 1)]


def present(files: list[Path]) -> list[Path]:
    """Returns ``files``. Raises StartupError if one is missing, or is a git-lfs pointer instead of the file."""
    for file in files:
        if not file.is_file():
            raise StartupError(f"the checkpoint is incomplete: {file.name} is missing; download it again")
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise lfs_pointer(file.name)
    return files


def lfs_pointer(name: str) -> StartupError:
    return StartupError(f"{name} of the checkpoint is a git-lfs pointer; run git lfs pull in its folder")
