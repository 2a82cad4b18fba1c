"""Which samples each step and each device trains on: a pure function of the seed, so that a training can be resumed."""

import math
from collections.abc import Iterator, Sequence

import torch


def epoch_batches(modality_lengths: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    """The batches of one epoch, ``batch`` samples each but for the last, mostly with images only or with text only.

    ``modality_lengths``: of each sample, below 0 without an image. As LLaVA's ``LengthGroupedSampler`` does, the
    incomplete batch of each kind goes into the last ones of the epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(modality_lengths), generator=generator).tolist()
    full: list[list[int]] = []
    rest: list[int] = []
    for with_image in (True, False):
        kind = [index for index in shuffled if (modality_lengths[index] > 0) is with_image]
        whole = len(kind) // batch * batch
        full += [kind[start : start + batch] for start in range(0, whole, batch)]
        rest += kind[whole:]
    order = torch.randperm(len(full), generator=generator).tolist()
    return [*(full[index] for index in order), *(rest[start : start + batch] for start in range(0, len(rest), batch))]


def rounds(
    batch: list[int], modality_lengths: Sequence[int], per_device: int, devices: int, device: int
) -> list[list[int]]:
    """What one of the devices computes of a batch, in rounds of ``per_device`` samples of similar length.

    Every device has the same number of rounds. A round without samples of its own repeats one of the batch.
    """
    by_length = sorted(batch, key=lambda index: -abs(modality_lengths[index]))
    at_once = per_device * devices
    parts = [by_length[start : start + at_once][device::devices] for start in range(0, len(batch), at_once)]
    return [part or by_length[:1] for part in parts]


def is_idle(batch: list[int], round_number: int, per_device: int, devices: int, device: int) -> bool:
    """Whether that round repeats a sample, which must not count."""
    return round_number * per_device * devices + device >= len(batch)


class Order:
    """The batches of a whole training, numbered from 0."""

    def __init__(self, modality_lengths: Sequence[int], batch: int, epochs: int, seed: int) -> None:
        self.modality_lengths = modality_lengths
        self.batch = batch
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(modality_lengths) / batch)
        self.steps = self.steps_per_epoch * epochs

    def batches(self, first: int) -> Iterator[list[int]]:
        """The batches from the step ``first`` on."""
        for epoch in range(first // self.steps_per_epoch, self.steps // self.steps_per_epoch):
            start = max(first - epoch * self.steps_per_epoch, 0)
            yield from epoch_batches(self.modality_lengths, self.batch, self.seed + epoch)[start:]
