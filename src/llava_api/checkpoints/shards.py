"""Writes a new checkpoint's tensors into safetensors files of bounded size, and their index."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from llava_api.checkpoints.tensors import Tensors

LARGEST_SHARD = 10**9
"""Bytes. Memory holds one shard, and a copy of it while it is written; a larger tensor is a shard by itself."""


class ShardWriter:
    """The checkpoint that is written into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[list[str]] = []
        """The names of the tensors in each shard written so far."""
        self.waiting: Tensors = {}
        self.waiting_bytes = 0
        self.parameters = 0
        self.bytes = 0

    def add(self, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if self.waiting_bytes + tensor.nbytes > LARGEST_SHARD:
                self.flush()
            self.waiting[name] = tensor
            self.waiting_bytes += tensor.nbytes
            self.parameters += tensor.numel()

    def flush(self) -> None:
        """Write the waiting tensors as one shard."""
        if self.waiting:
            self.shards.append(list(self.waiting))
            self.bytes += self.waiting_bytes
            save(unshared(self.waiting), self.folder / f"{len(self.shards)}.unnumbered")
            self.waiting, self.waiting_bytes = {}, 0

    def finish(self) -> None:
        """Name the shards by their count, and write the index."""
        self.flush()
        places: dict[str, str] = {}
        for number, names in enumerate(self.shards, start=1):
            file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            (self.folder / f"{number}.unnumbered").rename(self.folder / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": places}
        write_json(self.folder / "model.safetensors.index.json", index)


def save(tensors: Tensors, path: Path) -> None:
    """Save with the permissions of the umask; safetensors would make the file readable only by its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    if path.stat().st_mode != mode:
        path.chmod(mode)


def unshared(tensors: Tensors) -> Tensors:
    """Contiguous tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    made: Tensors = {}
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        place = plain.untyped_storage().data_ptr()
        made[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return made


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
