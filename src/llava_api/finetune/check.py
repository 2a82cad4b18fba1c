"""Finds what is wrong with training data before any model is loaded."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from llava_api.errors import InvalidRequest
from llava_api.finetune.encode import learnable_segments
from llava_api.finetune.image_files import image_size
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import FIELDS, TURN_FIELDS, BadSample, Sample, Samples, read_sample
from llava_api.prompts.render import count_text_tokens
from llava_api.prompts.segments import Segment
from llava_api.vision.geometry import Size

CHUNK = 1024
"""Samples that threads check at a time."""
MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Fault:
    index: int
    id: str
    message: str
    """A sentence that begins with its verb and has the sample as its subject."""

    def __str__(self) -> str:
        return f"sample {self.index} ({self.id}) {self.message}"


@dataclass
class Report:
    samples: int = 0
    images: int = 0
    """Different files."""
    good: list[int] = field(default_factory=list)
    """Indexes of the samples that can be learned from."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each good sample."""
    longest: tuple[int, str] = (0, "")
    """Tokens and id of the longest good sample."""
    faults: list[Fault] = field(default_factory=list)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    """Fields that are not read, and how many samples have each."""
    repeated_ids: dict[str, list[int]] = field(default_factory=dict)
    """Ids that several samples have, and where. LLaVA's own data has some."""


def check(samples: Samples, model: ModelInput, progress: Callable[[int], object] = lambda count: None) -> Report:
    """``progress`` is called with the number of samples that were checked since the last call."""
    report = Report(samples=len(samples))
    places: dict[str, int | list[int]] = {}
    sizes: dict[Path, Size | BadSample] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads:
        for start in range(0, len(samples), CHUNK):
            indexes = range(start, min(start + CHUNK, len(samples)))
            read = list(read_all(samples, indexes, model, report, places))
            new = dict.fromkeys(path for sample in read for path in sample.images if path not in sizes)
            sizes.update(zip(new, threads.map(lambda path: size_of(path, model), new), strict=True))
            measure(read, sizes, model, report)
            progress(len(indexes))
    report.images = len(sizes)
    report.repeated_ids = {name: where for name, where in places.items() if isinstance(where, list)}
    report.faults.sort(key=lambda fault: fault.index)
    return report


def read_all(
    samples: Samples, indexes: range, model: ModelInput, report: Report, places: dict[str, int | list[int]]
) -> Iterator[Sample]:
    """The samples that can be read; the others become faults."""
    for index in indexes:
        name = str(index)
        try:
            item = samples.item(index)
            if isinstance(item, dict):
                name = str(item.get("id", index))
                note_fields(item, report)
                if "id" in item:
                    note_id(name, index, places)
            sample = read_sample(item, index, samples.image_folder)
            if model.plain and (len(sample.turns) != 2 or not sample.images):
                raise BadSample("is not one question with an image and its answer, as the projector is trained on")
            yield sample
        except BadSample as error:
            report.faults.append(Fault(index, name, str(error)))


def note_fields(item: dict[str, object], report: Report) -> None:
    turns = item.get("conversations")
    unknown = {*item.keys() - FIELDS}
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.keys() != TURN_FIELDS:
            unknown.update(f"conversations.{name}" for name in turn.keys() - TURN_FIELDS)
    report.unknown_fields.update(unknown)


def note_id(name: str, index: int, places: dict[str, int | list[int]]) -> None:
    earlier = places.setdefault(name, index)
    if isinstance(earlier, list):
        earlier.append(index)
    elif earlier != index:
        places[name] = [earlier, index]


def size_of(path: Path, model: ModelInput) -> Size | BadSample:
    try:
        return image_size(path, model)
    except BadSample as error:
        return error


def measure(samples: list[Sample], sizes: dict[Path, Size | BadSample], model: ModelInput, report: Report) -> None:
    """Count the tokens of samples whose images are good."""
    counted: list[tuple[Sample, int]] = []
    prompts: list[list[Segment]] = []
    for sample in samples:
        found = [sizes[path] for path in sample.images]
        wrong = [str(size) for size in found if isinstance(size, BadSample)]
        try:
            segments = [] if wrong else [segment for segment, _ in learnable_segments(sample, model)]
        except InvalidRequest as error:
            wrong = [f"cannot be written as a prompt: {error.message}"]
        report.faults += [Fault(sample.index, sample.id, message) for message in wrong]
        if not wrong:
            image_tokens = sum(model.mode.tokens(size) for size in found if not isinstance(size, BadSample))
            counted.append((sample, image_tokens))
            prompts.append(segments)
    lengths = count_text_tokens(prompts, model.tokenizer)
    for (sample, image_tokens), text_tokens in zip(counted, lengths, strict=True):
        judge(sample, image_tokens + text_tokens, model, report)


def judge(sample: Sample, tokens: int, model: ModelInput, report: Report) -> None:
    if tokens > model.max_length:
        message = f"has {tokens} tokens, more than {model.max_length} (--max-model-len)"
        report.faults.append(Fault(sample.index, sample.id, message))
        return
    report.longest = max(report.longest, (tokens, sample.id))
    report.good.append(sample.index)
    report.lengths.append(tokens)
