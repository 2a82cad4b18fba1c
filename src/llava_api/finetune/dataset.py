"""Samples as tensors, for torch's DataLoader and transformers' models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava_api.errors import InvalidRequest
from llava_api.finetune.encode import encode
from llava_api.finetune.image_files import read_image, render_image
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import BadSample, Samples
from llava_api.vision.geometry import Size
from llava_api.vision.normalisation import Normalisation, Pixels

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, slots=True)
class Example:
    input_ids: Tensor
    """int64 (length,), with as many image tokens as the model makes features of the images."""
    labels: Tensor
    """int64 (length,): ``input_ids`` where they are learned, else ``IGNORED``."""
    images: tuple[Pixels, ...]
    """Levels as the server makes them: uint8 (3, S, S), or (1 + tiles, 3, S, S) for a family with grids."""
    image_sizes: tuple[Size | None, ...]
    """``ModelInput.model_size`` of each image."""


class FinetuneDataset(Dataset[Example]):
    """``indexes``: which of the samples, for example those without faults; None for all."""

    def __init__(self, samples: Samples, model: ModelInput, indexes: Sequence[int] | None = None) -> None:
        self.samples = samples
        self.model = model
        self.indexes = np.arange(len(samples)) if indexes is None else np.asarray(indexes)

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Example:
        """Raises BadSample for a sample that ``check`` refuses, and for an image whose pixels are damaged."""
        place = int(self.indexes[index])
        try:
            sample = self.samples[place]
            measured = [read_image(path, self.model) for path in sample.images]
            encoded = encode(sample, self.model, [image.tokens for image in measured])
            pixels = tuple(render_image(image, self.model).pixels for image in measured)
        except (BadSample, InvalidRequest) as error:
            raise BadSample(f"sample {place} {error}") from error
        ids = torch.tensor(encoded.prompt.token_ids)
        labels = torch.where(torch.tensor(encoded.learned), ids, IGNORED)
        return Example(ids, labels, pixels, tuple(self.model.model_size(image.size) for image in measured))

    def modality_lengths(self) -> list[int]:
        """The words of each sample, negative for one without an image, as LLaVA's group_by_modality_length takes them.

        Raises BadSample.
        """
        lengths = []
        for index in map(int, self.indexes):
            sample = self.samples[index]
            words = max(sum(len(turn.text.split()) for turn in sample.turns), 1)
            lengths.append(words if sample.images else -words)
        return lengths


def collator(model: ModelInput) -> Callable[[list[Example]], dict[str, Tensor]]:
    """``collate`` for one checkpoint."""
    return partial(collate, model.mode.normalisation)


def collate(normalisation: Normalisation, examples: list[Example]) -> dict[str, Any]:
    """Examples as the arguments of transformers' model, padded on the right.

    ``pixel_values`` are float32: (images, 3, S, S), or (images, most tiles, 3, S, S) beside ``image_sizes``
    (images, 2) for a family with grids. Both are missing if no example has an image.
    """
    rows = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": rows([example.input_ids for example in examples], batch_first=True, padding_value=0),
        "labels": rows([example.labels for example in examples], batch_first=True, padding_value=IGNORED),
        "attention_mask": rows([torch.ones_like(example.input_ids) for example in examples], batch_first=True),
    }
    images = [torch.from_numpy(normalisation.apply(image)) for example in examples for image in example.images]
    if images:
        tiled = images[0].ndim == 4
        batch["pixel_values"] = rows(images, batch_first=True) if tiled else torch.stack(images)
    sizes = [size for example in examples for size in example.image_sizes if size is not None]
    if sizes:
        batch["image_sizes"] = torch.tensor(sizes)
    return batch
