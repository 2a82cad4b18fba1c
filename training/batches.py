"""Turn seeds into training batches: pictures, conversations, token ids, pixels and patch labels.

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

from llava_api.checkpoints.hub_files import CLIP_MEAN, CLIP_STD
from llava_api.images.geometry import fit_within, select_best_resolution, tile_grid
from llava_api.images.pixels import Normalisation, anyres_canvas, pad_to_square
from training.conversations import (
    NO_PICTURE_QUESTIONS,
    SELF_ANSWER,
    SYSTEM_PROMPTS,
    Question,
    conversation,
    exam_conversation,
)
from training.model import Recipe
from training.pictures import COLOURS, KINDS, Mark, Picture, draw_picture, random_size, through_jpeg
from training.tokenizer import VICUNA_SYSTEM

KIND_INDEX = {kind: index + 1 for index, kind in enumerate((*KINDS, *"0123456789"))}
COLOUR_INDEX = {colour: index + 1 for index, colour in enumerate(COLOURS)}
IGNORED = -100


@dataclass(slots=True)
class Batch:
    ids: Tensor
    labels: Tensor
    tiles: Tensor
    """uint8 (tiles, S, S, 3)."""
    gather: Tensor
    """The feature row of each image token, in the order of ``ids``."""
    kinds: Tensor
    colours: Tensor
    """Auxiliary labels: (tiles * patches,)."""
    question_kinds: list[str]
    """Of each answer, in the order of the answers in ``labels``; for the exam's report."""
    answers: Tensor
    """For each label that is not ignored, the number of its answer."""


def frames(recipe: Recipe, image: Image.Image) -> list[tuple[Image.Image, tuple[float, float, float, float]]]:
    """The tiles of a picture, each with its (scale x, scale y, offset x, offset y): tile = picture * scale + offset."""
    side = recipe.tile_pixels
    width, height = image.size
    if recipe.version == "1.5":
        square = pad_to_square(image, Normalisation(CLIP_MEAN, CLIP_STD).fill_colour())
        longer = max(width, height)
        scale = side / longer
        offsets = ((longer - width) // 2 * scale, (longer - height) // 2 * scale)
        return [(square.resize((side, side), Image.Resampling.BICUBIC), (scale, scale, *offsets))]
    tiles = [(image.resize((side, side), Image.Resampling.BICUBIC), (side / width, side / height, 0.0, 0.0))]
    target = select_best_resolution(image.size, recipe.pinpoints)
    fitted = fit_within(image.size, target)
    canvas = anyres_canvas(image, target)
    left, top = (target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2
    for y in range(0, target[1], side):
        for x in range(0, target[0], side):
            frame = (fitted[0] / width, fitted[1] / height, left - x, top - y)
            tiles.append((canvas.crop((x, y, x + side, y + side)), frame))
    return tiles


def patch_labels(recipe: Recipe, marks: tuple[Mark, ...], frame: tuple[float, float, float, float]) -> np.ndarray:
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
    """The feature rows of one picture in the order in which the language model sees them."""
    patches = recipe.side**2
    base = first_tile * patches
    rows = list(range(base, base + patches))
    if recipe.version == "1.5":
        return rows
    grid = tile_grid(size, recipe.pinpoints, recipe.tile_pixels, recipe.patch_pixels)
    for y in range(grid.rows.start, grid.rows.stop):
        for x in range(grid.columns.start, grid.columns.stop):
            tile = first_tile + 1 + (y // recipe.side) * grid.across + x // recipe.side
            rows.append(tile * patches + (y % recipe.side) * recipe.side + x % recipe.side)
        rows.append(newline)
    return rows


@dataclass(frozen=True, slots=True)
class Turn:
    """One user turn with its answer; ``picture`` is an index into the sample's pictures."""

    pictures: tuple[int, ...]
    question: Question


@dataclass(frozen=True, slots=True)
class Sample:
    system: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]


def training_sample(rng: Random, largest: int) -> Sample:
    """A picture with one to four questions; now and then two pictures, no picture, another system prompt."""
    system = VICUNA_SYSTEM if rng.random() < 0.93 else rng.choice(SYSTEM_PROMPTS)
    roll = rng.random()
    if roll < 0.03:
        question = Question("text", rng.choice(NO_PICTURE_QUESTIONS), SELF_ANSWER)
        return Sample(system, (), (Turn((), question),))
    first = random_picture(rng, largest)
    if roll < 0.12:
        second = random_picture(rng, largest)
        turns = [Turn((0,), question) for question in conversation(rng, first, 1)[:1]]
        turns += [Turn((), question) for question in conversation(rng, first, 1)[:1] if rng.random() < 0.3]
        later = conversation(rng, second, 2)
        turns.append(Turn((1,), later[0]))
        turns += [Turn((), question) for question in later[1:]]
        return Sample(system, (first, second), tuple(turns))
    asked = conversation(rng, first, 4)
    return Sample(system, (first,), (Turn((0,), asked[0]), *(Turn((), question) for question in asked[1:])))


def random_picture(rng: Random, largest: int) -> Picture:
    picture = draw_picture(rng, random_size(rng, 112, largest))
    if rng.random() < 0.35:
        return Picture(through_jpeg(rng, picture.image), picture.shapes, picture.digits)
    return picture


def exam_sample(rng: Random) -> Sample:
    picture = draw_picture(rng, random_size(rng, 112, 2000))
    if rng.random() < 0.5:
        picture = Picture(through_jpeg(rng, picture.image), picture.shapes, picture.digits)
    asked = exam_conversation(rng, picture)
    return Sample(VICUNA_SYSTEM, (picture,), (Turn((0,), asked[0]), *(Turn((), question) for question in asked[1:])))


def encode_sample(
    sample: Sample, tokenizer: Tokenizer, image_token: int, token_counts: list[int], only_last: bool
) -> tuple[list[int], list[int]]:
    """(ids, labels) by vicuna_v1's rule: pieces between images tokenized on their own, BOS once."""
    ids: list[int] = [1]
    labels: list[int] = [IGNORED]

    def text(piece: str, learned: bool = False) -> None:
        tokens = tokenizer.encode(piece, add_special_tokens=False).ids
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORED] * len(tokens))

    pending = sample.system + " USER: "
    for index, turn in enumerate(sample.turns):
        for picture in turn.pictures:
            text(pending)
            ids.extend([image_token] * token_counts[picture])
            labels.extend([IGNORED] * token_counts[picture])
            pending = "\n"
        text(pending + turn.question.text + " ASSISTANT:")
        learned = not only_last or index == len(sample.turns) - 1
        # " ASSISTANT:" + " Yes." gives the same tokens whole or cut here: a word token starts at its space.
        text(turn.question.answer + "</s>", learned)
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
        for picture in sample.pictures:
            rows = feature_rows(recipe, picture.image.size, len(tiles), -1)
            counts.append(len(rows))
            gathers.append(rows)
            for tile, frame in frames(recipe, picture.image):
                tiles.append(np.asarray(tile))
                labels_of_tiles.append(patch_labels(recipe, (*picture.shapes, *picture.digits), frame))
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
        tiles=torch.from_numpy(np.stack(tiles)),
        gather=torch.tensor([row for rows in gathers for row in rows]),
        kinds=torch.from_numpy(both[0]),
        colours=torch.from_numpy(both[1]),
        question_kinds=kinds,
        answers=answers,
    )


class TrainingBatches(Dataset[Batch]):
    """Item ``step`` is the batch of that step."""

    def __init__(self, recipe: Recipe, tokenizer_json: str, seed: int, batch_size: int, steps: int) -> None:
        self.recipe, self.tokenizer_json = recipe, tokenizer_json
        self.seed, self.batch_size, self.steps = seed, batch_size, steps
        self.tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        if self.tokenizer is None:
            torch.set_num_threads(1)
            self.tokenizer = Tokenizer.from_str(self.tokenizer_json)
        samples = [
            training_sample(Random(f"train {self.recipe.name} {self.seed} {step} {index}"), 448)
            for index in range(self.batch_size)
        ]
        return collate(self.recipe, self.tokenizer, samples, only_last=False)


def exam_batch(recipe: Recipe, tokenizer: Tokenizer, first: int, count: int) -> Batch:
    """Validation items: seeds that training never uses."""
    samples = [exam_sample(Random(f"validate {index}")) for index in range(first, first + count)]
    return collate(recipe, tokenizer, samples, only_last=True)
