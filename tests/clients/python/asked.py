"""What every client asks: images with one right answer, an object about an image, and a function to call."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

CLIENTS = Path(__file__).resolve().parent.parent

Colour = Literal["red", "green", "blue", "yellow", "black", "purple", "orange"]
Kind = Literal["circle", "square", "triangle", "star"]


@dataclass(frozen=True)
class Question:
    text: str
    picture: Path
    answer: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.picture.read_bytes()).decode()

    @property
    def url(self) -> str:
        return f"data:image/png;base64,{self.base64}"

    def __str__(self) -> str:
        return self.text


QUESTIONS = [
    Question(item["question"], CLIENTS / "pictures" / item["picture"], item["answer"])
    for item in json.loads((CLIENTS / "questions.json").read_text())
]
STAR = QUESTIONS[0]


class Shape(BaseModel):
    """The largest shape in the image."""

    kind: Kind
    colour: Colour
    count: Annotated[int, Field(ge=1, le=3)]
    filled: bool
    label: Annotated[str, Field(pattern=r"^[a-z]{1,12}$")]


class Remark(BaseModel):
    """Any text, which may hold whatever JSON has to escape."""

    remark: Annotated[str, Field(max_length=40)]


class Paint(BaseModel):
    """Paint the shape in another colour."""

    colour: Colour
    coats: Annotated[int, Field(ge=1, le=3)]


def check_star(answer: object) -> None:
    """What a client made of an answer about ``STAR`` in the form of ``Shape``."""
    assert isinstance(answer, Shape)
    assert (answer.kind, answer.colour) == ("star", "blue")
