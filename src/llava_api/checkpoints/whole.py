"""Checks that a checkpoint's weights are complete, and how large they are, before anything is loaded.

An interrupted download leaves files that are missing or short, which the engine would notice after half a minute and
report in its own words. Only headers are read, no tensors.
"""

import json
import math
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_api.checkpoints.files import present, weight_files
from llava_api.errors import StartupError

LARGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
"""Weights under other names, in the order in which vLLM looks for them."""
NO_WEIGHTS_IN = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt")
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the types that the engine converts into the type it computes in; it keeps other types."""
SIZES = {"float32": 4, "float": 4, "half": 2, "float16": 2, "bfloat16": 2}


@dataclass(slots=True)
class Weights:
    files: int = 0
    bytes: int = 0
    floats: Counter[str] = field(default_factory=Counter)
    """Numbers of each type of ``FLOATS``."""

    def in_memory(self, dtype: str, *, quantized: bool = False) -> int:
        """Bytes that the engine needs at least. ``dtype``: as --dtype; ``quantized``: to 8 bit while loading."""
        size = SIZES.get(dtype)
        as_stored = sum(FLOATS[kind] * count for kind, count in self.floats.items())
        if quantized:
            return self.bytes - as_stored + self.floats.total()
        return self.bytes if size is None else self.bytes - as_stored + size * self.floats.total()


def check_whole(folder: Path) -> Weights:
    """The weights in ``folder``. Raises StartupError with the name of a missing or damaged file."""
    try:
        files = weight_files(folder) or others(folder)
        if not files:
            raise StartupError("the checkpoint has no weights: its folder holds no .safetensors and no .bin file")
        found = Weights()
        for file in files:
            add(found, file)
    except StartupError as error:
        unfinished = unfinished_downloads(folder)
        if unfinished:
            raise StartupError(f"{error} (a download is not finished: {unfinished[0].name})") from error
        raise
    except OSError as error:
        raise StartupError(f"the checkpoint's weights cannot be read ({error.strerror})") from error
    return found


def others(folder: Path) -> list[Path]:
    for pattern in OTHER_WEIGHTS:
        found = sorted(file for file in folder.glob(pattern) if file.name not in NO_WEIGHTS_IN)
        if found:
            return present(found)
    return []


def add(weights: Weights, file: Path) -> None:
    size = file.stat().st_size
    weights.files += 1
    weights.bytes += size
    if file.suffix == ".safetensors":
        header, expected = read_header(file, size)
        if size != expected:
            raise damaged(file, f"it has {size:,} bytes, and its header describes {expected:,}")
        for tensor in header.values():
            if tensor["dtype"] in FLOATS:
                weights.floats[tensor["dtype"]] += math.prod(tensor["shape"])
    elif size == 0 or (starts_like_zip(file) and not zipfile.is_zipfile(file)):
        raise damaged(file, "its end is missing")


def read_header(file: Path, size: int) -> tuple[dict[str, dict[str, Any]], int]:
    """(tensor -> its type, shape and offsets; bytes that the file should have)."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > LARGEST_HEADER or length + 8 > size:
            raise damaged(file, "its header is missing or cut short")
        text = opened.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        for tensor in header.values():
            math.prod(tensor["shape"])
            str(tensor["dtype"])
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise damaged(file, "its header is not that of a safetensors file") from error
    return header, 8 + length + max(ends, default=0)


def embedding_rows(folder: Path) -> int | None:
    """Rows of the text model's embedding, from the headers of safetensors files; None if they do not say."""
    try:
        for file in weight_files(folder):
            header = read_header(file, file.stat().st_size)[0] if file.suffix == ".safetensors" else {}
            for name, tensor in header.items():
                if name.endswith("embed_tokens.weight"):
                    return int(tensor["shape"][0])
    except (StartupError, OSError, IndexError):
        # check_whole reports damaged files.
        pass
    return None


def starts_like_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def damaged(file: Path, what: str) -> StartupError:
    return StartupError(
        f"the checkpoint is incomplete: {file.name} is cut short or damaged ({what}); download it again"
    )


def unfinished_downloads(folder: Path) -> list[Path]:
    """Unfinished files of the hub's downloader, in the folders where it keeps them."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    return sorted(file for place in places if os.access(place, os.R_OK) for file in place.glob("*.incomplete"))
