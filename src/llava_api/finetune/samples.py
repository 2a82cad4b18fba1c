"""LLaVA's training data: a JSON list, or JSON lines, of ``{"id", "image", "conversations": [{"from", "value"}]}``.

Samples are kept as JSON in one piece of memory and parsed when they are wanted: hundreds of thousands of Python objects
would be copied into each process that loads data.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import orjson

from llava_api.errors import StartupError
from llava_api.prompts.segments import Turn

IMAGE = "<image>"
ROLES = {"human": "user", "gpt": "assistant"}
FIELDS = frozenset(("id", "image", "conversations", "model"))
"""``model`` says in LLaVA's own mixture who wrote a conversation without an image."""
TURN_FIELDS = frozenset(("from", "value"))


CHUNK = 4_000_000
"""Characters of a JSON list that are read at a time."""
BETWEEN = ", \t\r\n"


class BadSample(Exception):
    """A sample that cannot be learned from; the message is a sentence without its id."""


@dataclass(frozen=True, slots=True)
class Sample:
    index: int
    """Its place in the file, from 0."""
    id: str
    images: tuple[Path, ...]
    system: str | None
    """The text of a first turn ``from: system``, instead of the prompt family's own."""
    turns: tuple[Turn, ...]
    """Questions and answers in turn; the last is an answer."""


class Samples:
    """The samples of a file, in its order."""

    def __init__(self, texts: Iterable[bytes], image_folder: Path) -> None:
        self.image_folder = image_folder
        self.content = bytearray()
        ends = [0]
        for text in texts:
            self.content += text
            ends.append(len(self.content))
        self.ends = np.array(ends)

    @classmethod
    def read(cls, path: Path, image_folder: Path) -> "Samples":
        """Raises StartupError if the file cannot be read, or is neither a JSON list nor JSON lines."""
        try:
            with open(path, encoding="utf-8-sig") as file:
                is_list = file.read(64).lstrip().startswith("[")
                file.seek(0)
                samples = cls(list_items(file) if is_list else lines(file), image_folder)
        except OSError as error:
            raise StartupError(f"cannot read {path} ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise StartupError(f"{path} is not text in UTF-8: save it as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise StartupError(f"{path} is not valid JSON: {error}") from error
        if not len(samples):
            raise StartupError(f"{path} has no samples")
        return samples

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, index: int) -> Any:
        """The JSON of a sample. Raises BadSample."""
        try:
            return orjson.loads(self.content[self.ends[index] : self.ends[index + 1]])
        except orjson.JSONDecodeError as error:
            raise BadSample(f"is not valid JSON ({error})") from error

    def __getitem__(self, index: int) -> Sample:
        """Raises BadSample."""
        return read_sample(self.item(index), index, self.image_folder)


def lines(file: TextIO) -> Iterator[bytes]:
    """Those that are not blank. Raises ValueError if the first is no JSON object: then others are none either."""
    for number, line in enumerate(line for line in file if line.strip()):
        if number == 0 and not is_object(line):
            raise ValueError("it must be a list of samples, [...], or have one sample, {...}, on each line")
        yield line.encode()


def is_object(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def list_items(file: TextIO) -> Iterator[bytes]:
    """The JSON of each item of a list, which is never in memory as a whole. Raises ValueError."""
    decode = json.JSONDecoder().raw_decode
    text, position, count = file.read(CHUNK).partition("[")[2], 0, 0
    while True:
        try:
            while text[position] in BETWEEN:
                position += 1
            if text[position] == "]":
                return
            _, end = decode(text, position)
        except (ValueError, IndexError) as error:
            more = file.read(CHUNK)
            if not more:
                raise ValueError(f"the list is damaged or ends after {count} samples") from error
            text, position = text[position:] + more, 0
            continue
        yield text[position:end].encode()
        position, count = end, count + 1


def read_sample(item: Any, index: int, image_folder: Path) -> Sample:
    """Raises BadSample."""
    if not isinstance(item, dict):
        raise BadSample("is not a JSON object")
    names = item.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise BadSample("has an image that is not the name of a file")
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadSample("has no conversations, a list of turns with from and value")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(field), str) for field in TURN_FIELDS):
            raise BadSample(f"has a turn {number} without from and value, both texts")
    system = turns[0]["value"] if turns[0]["from"] == "system" else None
    read = read_turns(turns if system is None else turns[1:], len(names))
    # Windows' paths have backslashes.
    images = tuple(image_folder / name.replace("\\", "/") for name in names)
    return Sample(index, str(item.get("id", index)), images, system, read)


def read_turns(turns: list[dict[str, str]], images: int) -> tuple[Turn, ...]:
    """Human and gpt in turn, with ``images`` places for images in the human's. Raises BadSample."""
    made: list[Turn] = []
    shown = 0
    for number, turn in enumerate(turns):
        speaker, text = turn["from"], turn["value"]
        if speaker not in ROLES:
            raise BadSample(f"has a turn from {speaker!r}: write human or gpt")
        if speaker != ("human", "gpt")[number % 2]:
            raise BadSample(
                "begins with gpt, not with human" if number == 0 else f"has two turns of {speaker} in a row"
            )
        here = text.count(IMAGE)
        if speaker == "gpt" and here:
            raise BadSample(f"has {IMAGE} in an answer")
        if speaker == "gpt" and not text.strip():
            raise BadSample("has an empty answer")
        # As LLaVA's preprocess_multimodal does, and as the server: images first, then the text of the turn.
        text = text.replace(IMAGE, "").strip() if here else text
        made.append(Turn(ROLES[speaker], (*range(shown, shown + here), text)))
        shown += here
    if len(made) % 2 or not made:
        raise BadSample("ends with a question that has no answer")
    if shown != images:
        files = "1 image" if images == 1 else f"{images} images"
        raise BadSample(f"has {shown} {IMAGE} for {files}: write it once for each image, in the questions")
    return tuple(made)
