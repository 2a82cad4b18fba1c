"""LLaVA's training data: a JSON list, or JSON lines, of ``{"id", "image", "conversations": [{"from", "value"}]}``.

Samples are kept as JSON in one piece of memory and parsed when they are wanted: hundreds of thousands of Python objects
would be copied into each process that loads data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llava_api.errors import StartupError
from llava_api.prompts.segments import Turn

IMAGE = "<image>"
ROLES = {"human": "user", "gpt": "assistant"}
FIELDS = frozenset(("id", "image", "conversations", "model"))
"""``model`` says in LLaVA's own mixture who wrote a conversation without an image."""
TURN_FIELDS = frozenset(("from", "value"))


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

    def __init__(self, texts: Iterator[bytes], image_folder: Path) -> None:
        self.image_folder = image_folder
        ends, length, parts = [0], 0, []
        for text in texts:
            parts.append(text)
            length += len(text)
            ends.append(length)
        self.ends = np.array(ends)
        self.content = b"".join(parts)

    @classmethod
    def read(cls, file: Path, image_folder: Path) -> "Samples":
        """Raises StartupError if the file cannot be read, or is neither a JSON list nor JSON lines."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StartupError(f"cannot read {file} ({error.strerror})") from error
        if content[:64].lstrip()[:1] != b"[":
            return cls((line for line in content.splitlines() if line.strip()), image_folder)
        try:
            items = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise StartupError(f"{file} is not valid JSON: {error}") from error
        del content
        return cls(map(orjson.dumps, items), image_folder)

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


def read_sample(item: Any, index: int, image_folder: Path) -> Sample:
    """Raises BadSample."""
    if not isinstance(item, dict):
        raise BadSample("is not a JSON object")
    names = item.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) and name for name in names):
        raise BadSample("has an image that is not the name of a file")
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadSample("has no conversations, a list of turns with from and value")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(field), str) for field in TURN_FIELDS):
            raise BadSample(f"has a turn {number} without from and value, both texts")
    system = turns[0]["value"] if turns[0]["from"] == "system" else None
    read = read_turns(turns if system is None else turns[1:], len(names))
    return Sample(index, str(item.get("id", index)), tuple(image_folder / name for name in names), system, read)


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
        raise BadSample(f"has {shown} {IMAGE} for {images} {'image' if images == 1 else 'images'}")
    return tuple(made)
