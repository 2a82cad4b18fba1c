"""Turn seeds into training batches: drawings, conversations, token ids, pixels and patch labels.

A batch is a pure function of (recipe, seed, step), so an interrupted training resumes exactly.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from llava_api.chat.tools import INTRODUCTION
from llava_api.images.decode import Decoded
from llava_api.images.pixels import anyres_levels, pad_levels
from llava_api.vision.geometry import Size, fit_within, select_best_resolution, tile_grid
from llava_api.vision.normalisation import CLIP
from training.conversations import Question
from training.drawings import COLOURS, KINDS, Mark
from training.model import Recipe, Stage
from training.samples import Sample, exam_sample, form_exam_sample, mixed_sample, training_sample

KIND_INDEX = {kind: index + 1 for index, kind in enumerate((*KINDS, *"0123456789"))}
COLOUR_INDEX = {colour: index + 1 for index, colour in enumerate(COLOURS)}
IGNORED = -100

Frame = tuple[float, float, float, float]
"""(scale x, scale y, offset x, offset y) of a tile: place in the tile = place in the drawing * scale + offset."""


@dataclass(slots=True)
class Batch:
    ids: Tensor
    labels: Tensor
    tiles: Tensor
    """Levels: uint8 (tiles, 3, S, S)."""
    gather: Tensor
    """The feature row of each image token, in the order of ``ids``."""
    kinds: Tensor
    colours: Tensor
    """Auxiliary labels: (tiles * patches,)."""
    question_kinds: list[str]
    """The kind of question for each answer in ``labels``, in their order, for the exam's report."""
    answers: Tensor
    """For each label that is not ignored, the number of its answer."""


def levels(recipe: Recipe, image: Image.Image) -> np.ndarray:
    """The tiles of a drawing as the server makes them: uint8 (tiles, 3, S, S)."""
    if not recipe.family.tiled:
        return pad_levels(Decoded(image, image.size), recipe.tile_pixels, CLIP)[None]
    return anyres_levels(Decoded(image, image.size), recipe.pinpoints, recipe.tile_pixels)


def frames(recipe: Recipe, size: Size) -> list[Frame]:
    """Where the tiles of a drawing of ``size`` lie on it."""
    side = recipe.tile_pixels
    width, height = size
    if not recipe.family.tiled:
        longer = max(width, height)
        scale = side / longer
        return [(scale, scale, (longer - width) // 2 * scale, (longer - height) // 2 * scale)]
    target = select_best_resolution(size, recipe.pinpoints)
    fitted = fit_within(size, target)
    left, top = (target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2
    corners = [(x, y) for y in range(0, target[1], side) for x in range(0, target[0], side)]
    tiles = [(fitted[0] / width, fitted[1] / height, left - x, top - y) for x, y in corners]
    return [(side / width, side / height, 0.0, 0.0), *tiles]


def patch_labels(recipe: Recipe, marks: tuple[Mark, ...], frame: Frame) -> np.ndarray:
    """(2, patches): the kind and colour index of the mark over each patch centre."""
    scale_x, scale_y, offset_x, offset_y = frame
    centres = (np.arange(recipe.side) + 0.5) * recipe.patch_pixels
    labels = np.zeros((2, recipe.side, recipe.side), dtype=np.int64)
    for mark in marks:
        left, top, right, bottom = mark.box
        columns = (centres >= left * scale_x + offset_x) & (centres <= right * scale_x + offset_x)
        rows = (centres >= top * scale_y + offset_y) & (centres <= bottom * scale_y + offset_y)
        covered = rows[:, None] & columns[None, :]
        labels[0][covered] = KIND_INDEX[mark.kind]
        labels[1][covered] = COLOUR_INDEX[mark.colour]
    return labels.reshape(2, -1)


def feature_rows(recipe: Recipe, size: tuple[int, int], first_tile: int, newline: int) -> list[int]:
    """The feature rows of one drawing in the order in which the language model sees them."""
    patches = recipe.side**2
    base = first_tile * patches
    rows = list(range(base, base + patches))
    if not recipe.family.tiled:
        return rows
    grid = tile_grid(size, recipe.pinpoints, recipe.tile_pixels, recipe.patch_pixels)
    for y in range(grid.rows.start, grid.rows.stop):
        for x in range(grid.columns.start, grid.columns.stop):
            tile = first_tile + 1 + (y // recipe.side) * grid.across + x // recipe.side
            rows.append(tile * patches + (y % recipe.side) * recipe.side + x % recipe.side)
        rows.append(newline)
    return rows


def encode_sample(
    sample: Sample, tokenizer: Tokenizer, image_token: int, token_counts: list[int], only_last: bool
) -> tuple[list[int], list[int]]:
    """(ids, labels) by vicuna_v1's rule: pieces between images tokenized on their own, BOS once."""
    ids: list[int] = [1]
    labels: list[int] = [IGNORED]

    def text(piece: str) -> None:
        tokens = tokenizer.encode(piece, add_special_tokens=False).ids
        ids.extend(tokens)
        labels.extend([IGNORED] * len(tokens))

    def answer(question: Question, learned: bool) -> None:
        # " ASSISTANT:" + " Yes." gives the same tokens whole or cut here: a word token starts at its space.
        encoded = tokenizer.encode(question.answer + "</s>", add_special_tokens=False)
        own = (*(question.own or [True] * len(question.answer)), *[True] * len("</s>"))
        ids.extend(encoded.ids)
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            labels.append(token if learned and any(own[start:stop]) else IGNORED)

    pending = sample.system + " USER: "
    for index, turn in enumerate(sample.turns):
        for drawing in turn.drawings:
            text(pending)
            ids.extend([image_token] * token_counts[drawing])
            labels.extend([IGNORED] * token_counts[drawing])
            pending = "\n"
        text(pending + turn.question.text + " ASSISTANT:")
        answer(turn.question, learned=not only_last or index == len(sample.turns) - 1)
        pending = "USER: "
    return ids, labels


def collate(recipe: Recipe, tokenizer: Tokenizer, samples: list[Sample], only_last: bool) -> Batch:
    image_token, pad_token = tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")
    tiles: list[np.ndarray] = []
    labels_of_tiles: list[np.ndarray] = []
    gathers: list[list[int]] = []
    sequences: list[tuple[list[int], list[int]]] = []
    kinds: list[str] = []
    for sample in samples:
        counts: list[int] = []
        for drawing in sample.drawings:
            rows = feature_rows(recipe, drawing.image.size, len(labels_of_tiles), -1)
            counts.append(len(rows))
            gathers.append(rows)
            tiles.append(levels(recipe, drawing.image))
            marks = (*drawing.shapes, *drawing.digits)
            labels_of_tiles += [patch_labels(recipe, marks, frame) for frame in frames(recipe, drawing.image.size)]
        sequences.append(encode_sample(sample, tokenizer, image_token, counts, only_last))
        asked = [turn.question.kind for turn in sample.turns]
        kinds.extend(asked[-1:] if only_last else asked)
    length = math.ceil(max(len(ids) for ids, _ in sequences) / 16) * 16
    ids = torch.full((len(samples), length), pad_token)
    labels = torch.full((len(samples), length), IGNORED)
    for row, (sequence, targets) in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, : len(targets)] = torch.tensor(targets)
    flat = labels[:, 1:]
    ends = (flat == 2) & (flat != IGNORED)
    learned = flat[flat != IGNORED]
    answers = torch.cumsum(learned == 2, 0) - (learned == 2).long()
    if int(ends.sum()) != len(kinds):
        raise RuntimeError("an answer lost its end token")
    both = np.concatenate(labels_of_tiles, axis=1)
    return Batch(
        ids=ids,
        labels=labels,
        tiles=torch.from_numpy(np.concatenate(tiles)),
        gather=torch.tensor([row for rows in gathers for row in rows]),
        kinds=torch.from_numpy(both[0]),
        colours=torch.from_numpy(both[1]),
        question_kinds=kinds,
        answers=answers,
    )


class TrainingBatches(Dataset[list[Batch]]):
    """Item ``step`` is the batch of that step, in parts of similar length so that short samples are padded little."""

    def __init__(self, recipe: Recipe, stage: Stage, tokenizer_json: str, seed: int, batch_size: int) -> None:
        self.recipe, self.stage, self.tokenizer_json = recipe, stage, tokenizer_json
        self.seed, self.batch_size = seed, batch_size
        self.tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Batch]:
        if self.tokenizer is None:
            torch.set_num_threads(1)
            self.tokenizer = Tokenizer.from_str(self.tokenizer_json)
        draw = mixed_sample if self.stage.name == "forms" else training_sample
        name = "train" if self.stage.name == "answers" else self.stage.name
        seeds = [f"{name} {self.recipe.name} {self.seed} {step} {index}" for index in range(self.batch_size)]
        samples = [draw(Random(seed), 448) for seed in seeds]
        long = [sample for sample in samples if INTRODUCTION in sample.system]
        parts = [[sample for sample in samples if INTRODUCTION not in sample.system], long]
        if not any(sample.drawings for sample in long):
            parts = [samples]
        return [collate(self.recipe, self.tokenizer, part, only_last=False) for part in parts]


def exam_batch(recipe: Recipe, tokenizer: Tokenizer, first: int, count: int) -> Batch:
    """Validation items: seeds that training never uses."""
    samples = [exam_sample(Random(f"validate {index}")) for index in range(first, first + count)]
    return collate(recipe, tokenizer, samples, only_last=True)


def form_exam_batch(recipe: Recipe, tokenizer: Tokenizer, first: int, count: int) -> Batch:
    """Validation items with answers in JSON."""
    samples = [form_exam_sample(Random(f"validate forms {index}")) for index in range(first, first + count)]
    return collate(recipe, tokenizer, samples, only_last=True)
