"""Converted checkpoints, kept for the next start: one folder for each state of a source."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from llava_api.checkpoints.claim import claimed
from llava_api.checkpoints.files import locate, read_json, weight_files
from llava_api.checkpoints.inspect import Checkpoint, Sources, inspect_checkpoint
from llava_api.checkpoints.size import Precision
from llava_api.errors import StartupError

ELSEWHERE = "name another folder with --cache-dir"
FORMAT_VERSION = 1
"""Raised when folders are converted differently, so that older ones are converted again."""


def ready_checkpoint(
    checkpoint: Checkpoint, sources: Sources, cache_dir: str, precision: Precision | None = None
) -> Checkpoint:
    """A checkpoint that the engine can load: itself, or its converted copy if its format or precision is another.

    Converts on first use, which takes as long as reading and writing the weights once. Raises StartupError.
    """
    if checkpoint.format == "hub" and precision is None:
        return checkpoint
    root = Path(cache_dir).expanduser()
    target = root / "-".join(filter(None, (folder_name(checkpoint, sources), precision)))
    # Checked before anything is written, because a complete cache may be read-only.
    if not is_complete(target):
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Two servers that start at once convert once.
            with claimed(target, wait=True):
                if not is_complete(target):
                    convert_into(checkpoint, sources, target, precision)
        except OSError as error:
            raise StartupError(f"cannot write to {root} ({error.strerror}): {ELSEWHERE}") from error
    return inspect_checkpoint(str(target), Sources())


def convert_into(checkpoint: Checkpoint, sources: Sources, target: Path, precision: Precision | None) -> None:
    # Imports torch.
    from llava_api.checkpoints.convert import write

    shutil.rmtree(target, ignore_errors=True)
    write(checkpoint, sources, target, ELSEWHERE, precision)


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest exists with its size."""
    try:
        files = read_json(folder, "manifest.json").get("files")
        if not isinstance(files, dict) or not files:
            return False
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (StartupError, OSError):
        return False


def folder_name(checkpoint: Checkpoint, sources: Sources) -> str:
    """The source's name and a digest of everything that the converted weights depend on."""
    if checkpoint.gguf is not None:
        files = [checkpoint.gguf.text, checkpoint.gguf.vision]
    else:
        folders = [locate(checkpoint.model, sources.download_dir, sources.revision, weights=True)]
        if sources.model_base is not None:
            folders.append(locate(sources.model_base, sources.download_dir, weights=True))
        files = [file for folder in folders for file in stamped_files(folder)]
    state: dict[str, Any] = {
        "form": FORMAT_VERSION,
        "config": checkpoint.config,
        "tokenizer": hashlib.sha256(checkpoint.tokenizer_json.encode()).hexdigest(),
        "tower": checkpoint.tower.source if checkpoint.tower is not None else None,
        "files": [stamp(file) for file in files],
    }
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]
    return f"{Path(checkpoint.model).name or 'checkpoint'}-{digest}"


def stamped_files(folder: Path) -> list[Path]:
    adapters = [*folder.glob("adapter_*"), *folder.glob("non_lora_trainables.bin")]
    return sorted([*weight_files(folder), *adapters])


def stamp(file: Path) -> tuple[str, int, int]:
    """Name, bytes and time of change. Not a digest of the content: that would read every weight at every start."""
    facts = file.stat()
    return str(file.resolve()), facts.st_size, facts.st_mtime_ns
