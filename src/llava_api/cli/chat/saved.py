"""A conversation in a file: the fields of a chat request, in OpenAI's names."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from llava_api.cli.chat.conversation import Conversation
from llava_api.cli.chat.sampling import Sampling
from llava_api.errors import StartupError


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
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    conversation: Conversation
    model: str | None
    sampling: Sampling


def save(path: Path, conversation: Conversation, model: str, sampling: Sampling) -> None:
    """Writes all of the file or nothing. Raises StartupError; a file that is no saved conversation is left alone."""
    if path.exists():
        try:
            load(path)
        except StartupError as error:
            raise StartupError(f"{path} exists and is no saved conversation: choose another name") from error
    request = {"model": model, **sampling.fields(), "messages": conversation.messages()}
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            # Readable by its owner alone, as temporary files are: pictures and prompts are nobody else's business.
            json.dump(request, file, ensure_ascii=True, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        raise StartupError(f"{path} cannot be written ({error.strerror})") from error


def load(path: Path) -> Loaded:
    """Raises StartupError that says what is wrong with the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StartupError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not text") from error
    try:
        saved = SavedChat.model_validate(json.loads(text))
    except ValidationError as error:
        raise StartupError(f"{path} is no saved conversation: {first_complaint(error)}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path} is not valid JSON") from error
    return of(saved)


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
