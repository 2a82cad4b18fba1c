"""Files of weights -> tensors, without running code in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava_api.errors import StartupError

Tensors = dict[str, torch.Tensor]


def read_tensors(file: Path) -> Tensors:
    """The tensors of a safetensors or ``.bin`` file. Raises StartupError if it is damaged or holds anything else."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = load_pickled(file)
    except pickle.UnpicklingError as error:
        raise StartupError(
            f"{file.name} is refused: it is damaged, or holds more than tensors (a pickle can run code when it is read)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise StartupError(f"{file.name} is damaged or only half downloaded: download it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise StartupError(f"{file.name} holds something other than named tensors")
    return loaded


def load_pickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Written by a torch from before the zip format.
        return torch.load(file, map_location="cpu", weights_only=True)
