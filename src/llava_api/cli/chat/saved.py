"""A conversation in a file: the fields of a chat request, in OpenAI's names."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat, ValidationError

from llava_api.cli.chat.conversation import Conversation
from llava_api.cli.chat.sampling import Sampling
from llava_api.errors import StartupError

MAX_BYTES = 256 * 1024 * 1024
"""Of a file; more than any server takes in a request, which has the whole conversation in it."""


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
    """Other fields of a chat request may stand in the file; they are left aside."""

    model: str | None = None
    messages: list[SavedMessage]
    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    conversation: Conversation
    model: str | None
    sampling: Sampling


def save(path: Path, conversation: Conversation, model: str, sampling: Sampling) -> None:
    """Writes all of the file or nothing. Raises StartupError; a file that is no saved conversation is left alone."""
    if os.path.lexists(path):
        try:
            load(path)
        except StartupError as error:
            raise StartupError(f"{path} exists and is no saved conversation: choose another name") from error
    request = {"model": model, **sampling.fields(), "messages": conversation.messages()}
    try:
        # Readable by its owner alone, as temporary files are: pictures and prompts are nobody else's business.
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
        raise StartupError(f"{path} cannot be written ({reason_of(error)})") from error


def load(path: Path) -> Loaded:
    """Raises StartupError that says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StartupError(f"{path} has more than {MAX_BYTES // 1024**2} MiB")
        text = data.decode()
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not text") from error
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read ({reason_of(error)})") from error
    try:
        saved = SavedChat.model_validate(json.loads(text))
    except ValidationError as error:
        raise StartupError(f"{path} is no saved conversation: {first_complaint(error)}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path} is not valid JSON") from error
    return of(saved)


def reason_of(error: OSError | ValueError) -> str:
    """A text with a zero byte in it is a ValueError."""
    return getattr(error, "strerror", None) or "that cannot be a file's name"


def of(saved: SavedChat) -> Loaded:
    messages = [message.model_dump(exclude_none=True) for message in saved.messages]
    system: str | None = None
    if messages and messages[0]["role"] == "system" and isinstance(messages[0]["content"], str):
        system = messages.pop(0)["content"]
    sampling = Sampling(saved.temperature, saved.top_p, saved.max_tokens, saved.seed)
    return Loaded(Conversation(system, tuple(messages)), saved.model, sampling)


def first_complaint(error: ValidationError) -> str:
    details: Any = error.errors(include_url=False)[0]
    place = ".".join(map(str, details["loc"]))
    return f"{place}: {details['msg']}" if place else str(details["msg"])
