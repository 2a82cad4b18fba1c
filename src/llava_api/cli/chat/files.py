"""Files that a person names: images, and saved conversations, which have the fields of a chat request."""

import json
import os
import shlex
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat, ValidationError

from llava_api.cli.conversation import Conversation, Sampling, data_url
from llava_api.errors import BadImage, StartupError
from llava_api.images.previews import media_type

MAX_BYTES = 256 * 1024 * 1024
"""More than any server takes; the limit is for files without an end, such as /dev/zero."""


def read_file(name: str, *, from_stdin: bool = False) -> bytes:
    """Raises StartupError for a file that cannot be read or is larger than ``MAX_BYTES``."""
    try:
        with nullcontext(sys.stdin.buffer) if from_stdin else open(os.path.expanduser(name), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StartupError(f"{name} cannot be read ({reason_for(error)})") from error
    if len(data) > MAX_BYTES:
        raise StartupError(f"{name} has more than {MAX_BYTES // 1024**2} MiB")
    return data


def reason_for(error: OSError | ValueError) -> str:
    """A name with a zero byte in it is a ValueError."""
    return getattr(error, "strerror", None) or "that cannot be a file's name"


@dataclass(frozen=True, slots=True)
class ImageFile:
    label: str
    """Its name in messages."""
    url: str
    """What is sent: a data: URL with the file in it, or the web address."""
    data: bytes | None
    """None if only the server reads it."""


def open_image(name: str) -> ImageFile:
    """A file, ``-`` for standard input, or a http:, https:, file: or data: URL. Raises StartupError."""
    if name.lower().startswith(("http://", "https://", "file:")):
        return ImageFile(name, name, None)
    if name.lower().startswith("data:"):
        return ImageFile("the image of a data: URL", name, None)
    label = "standard input" if name == "-" else name
    data = read_file(label, from_stdin=name == "-")
    if not data:
        raise StartupError(f"{label} is empty: an image was expected")
    try:
        return ImageFile(label, data_url(data, media_type(data)), data)
    except BadImage as error:
        raise StartupError(f"{label}: {error.message}") from error


def names_in(text: str) -> list[str]:
    """The names after /image: one with spaces in it, or several, quoted as in a shell.

    Terminals put quotes or backslashes into the name of a file that is dropped on them.
    """
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:
        # A quote that is never closed belongs to the name.
        return [text]


def path_in(text: str) -> Path:
    """The one name after /save or /load, with spaces in it or quoted."""
    names = names_in(text)
    return Path(os.path.expanduser(names[0] if len(names) == 1 else text))


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class SavedMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart | ImagePart]


class SavedChat(BaseModel):
    """The file may hold other fields of a chat request, which are ignored."""

    model: str | None = None
    messages: list[SavedMessage]
    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def conversation(self) -> Conversation:
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        system: str | None = None
        if messages and messages[0]["role"] == "system" and isinstance(messages[0]["content"], str):
            system = messages.pop(0)["content"]
        return Conversation(system, tuple(messages))

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)


def save(path: Path, conversation: Conversation, model: str, sampling: Sampling) -> None:
    """Write all of the file or nothing. Raises StartupError, also rather than overwrite anything but a conversation."""
    if os.path.lexists(path):
        try:
            load(path)
        except StartupError as error:
            raise StartupError(f"{path} exists and is no saved conversation: choose another name") from error
    request = {"model": model, **sampling.fields(), "messages": conversation.messages()}
    try:
        # Temporary files can be read only by their owner: images and prompts are private.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            try:
                json.dump(request, file, ensure_ascii=True, indent=1)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                # Ctrl-C included.
                Path(file.name).unlink(missing_ok=True)
                raise
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be written ({reason_for(error)})") from error


def load(path: Path) -> SavedChat:
    """Raises StartupError that says what is wrong with the file."""
    try:
        return SavedChat.model_validate(json.loads(read_file(str(path)).decode()))
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not text") from error
    except ValidationError as error:
        raise StartupError(f"{path} is no saved conversation: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path} is not valid JSON") from error


def first_problem(error: ValidationError) -> str:
    details: Any = error.errors(include_url=False)[0]
    place = ".".join(map(str, details["loc"]))
    return f"{place}: {details['msg']}" if place else str(details["msg"])
