"""Answers in JSON, of which a schema dictates all but the values.

A server that is given a JSON schema lets the model choose only among the tokens that fit it: braces, keys and
separators leave no choice. They are context here, not something to learn, so a model that learns these answers says
what it sees where it is made to write JSON, and answers as before where it is not.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from training.conversations import (
    DESCRIBE,
    DESCRIBE_VARIANTS,
    Question,
    ask_color,
    ask_count,
    ask_exists,
    ask_number,
    description,
)
from training.drawings import Drawing, Mark

# The first of each is the commonest.
COLOUR_KEYS = ("color", "color", "color", "colour", "shape_color", "fill")
KIND_KEYS = ("shape", "shape", "shape", "kind", "name", "object", "type", "form")
LABEL_KEYS = ("label", "title", "category", "class")
COUNT_KEYS = ("count", "count", "count", "shapes", "number_of_shapes", "how_many", "total", "answer")
THINGS_KEYS = ("shapes", "shapes", "objects", "items", "things")
KIND_LIST_KEYS = ("shapes", "kinds", "objects")
COLOUR_LIST_KEYS = ("colors", "colors", "colours")
TEXT_KEYS = ("description", "description", "caption", "text", "summary", "answer")
YES_KEYS = ("answer", "exists", "present", "is_there", "found", "visible")
NUMBER_KEYS = ("number", "number", "number", "value", "digits", "answer")

LOOK = (
    *DESCRIBE * 4,
    *DESCRIBE_VARIANTS,
    "Describe the shape.",
    "Describe the shapes.",
    "What shape is this?",
    "What shape is this and what color is it?",
    "Which shape and which color?",
    "Which shapes are there?",
    "What color is this?",
    "What color is the shape?",
    "Extract the shapes.",
    "Extract the data.",
    "Report the shape.",
    "Answer in JSON.",
    "What do you see? Answer in JSON.",
)
"""Questions that may be asked with any schema."""
READ = ("What number is written?", "What number is this?", "Read the number.", "Which number is it?")

SHAPE_FORMS = {
    ("colour",): 4,
    ("kind",): 2,
    ("kind", "colour"): 6,
    ("count",): 3,
    ("text",): 3,
    ("things",): 3,
    ("exists",): 3,
    ("kind", "colour", "count"): 2,
    ("things", "count"): 1,
    ("text", "count"): 1,
    ("exists", "count"): 1,
    ("kind", "colour", "text"): 1,
    ("kind", "colour", "filled"): 1,
    ("kind", "colour", "count", "filled", "label"): 1,
    ("colour", "count"): 1,
}
"""Which fields an object has, and how often."""
NUMBER_FORMS = {("number",): 8, ("text",): 3, ("count",): 1, ("things",): 1, ("exists",): 1, ("number", "text"): 1}


def write(answer: dict[str, Any]) -> tuple[str, list[bool]]:
    """``answer`` as ``json.dumps`` writes it, and for each character whether the model chooses it.

    It chooses values and what ends them: a string's closing quote, the character after a number, and in a list whether
    there is one more value.
    """
    text = ""
    own: list[bool] = []
    choices: list[int] = []
    """Where a character is chosen although it is no value."""

    def put(piece: str, chosen: bool = False) -> None:
        nonlocal text
        text += piece
        own.extend([chosen] * len(piece))

    def put_value(value: Any) -> None:
        if isinstance(value, dict):
            for index, (key, one) in enumerate(value.items()):
                put(("{", ", ")[index > 0] + json.dumps(key) + ": ")
                put_value(one)
            put("}")
        elif isinstance(value, list):
            put("[")
            for index, one in enumerate(value):
                choices.append(len(text))
                put(", " if index else "")
                put_value(one)
            choices.append(len(text))
            put("]")
        elif isinstance(value, str):
            put('"')
            put(json.dumps(value)[1:], chosen=True)
        else:
            put(json.dumps(value), chosen=True)
            if not isinstance(value, bool):
                choices.append(len(text))

    put_value(answer)
    for position in choices:
        own[position] = True
    return text, own


def mark_asked_about(rng: Random, drawing: Drawing) -> tuple[str, Mark]:
    """A question, and the shape that its answer is about: the one that it names, else the first in reading order."""
    asked = ask_color(rng, drawing) if rng.random() < 0.5 else None
    if asked is None:
        return rng.choice(LOOK), drawing.shapes[0]
    single = next(mark for mark in drawing.shapes if asked.text == f"What color is the {mark.kind}?")
    return asked.text, single


def things(rng: Random, drawing: Drawing) -> tuple[str, list[Any]]:
    """(key, the shapes in reading order: as objects, or by one word each)."""
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(KIND_LIST_KEYS), [mark.kind for mark in drawing.shapes]
    if roll < 0.3:
        return rng.choice(COLOUR_LIST_KEYS), [mark.colour for mark in drawing.shapes]
    kind, colour = rng.choice(KIND_KEYS), rng.choice(COLOUR_KEYS)
    order = 1 if rng.random() < 0.5 else -1
    rows = [((kind, mark.kind), (colour, mark.colour)) for mark in drawing.shapes]
    return rng.choice(THINGS_KEYS), [dict(row[::order]) for row in rows]


def schema_object(rng: Random, drawing: Drawing) -> tuple[str, str, dict[str, Any]]:
    """(row of the report, question, answer) about a drawing, whether it shows shapes or a number."""
    forms = NUMBER_FORMS if drawing.number is not None else SHAPE_FORMS
    (fields,) = rng.choices(list(forms), list(forms.values()))
    question = rng.choice(LOOK)
    found: dict[str, tuple[str, Any]] = {}
    for field in fields:
        if field == "kind":
            question, mark = mark_asked_about(rng, drawing)
            found["kind"] = (rng.choice(KIND_KEYS), mark.kind)
            found["colour"] = (rng.choice(COLOUR_KEYS), mark.colour)
            found["label"] = (rng.choice(LABEL_KEYS), mark.kind)
        elif field == "filled":
            found["filled"] = ("filled", True)
        elif field == "colour" and "kind" not in fields:
            question, mark = mark_asked_about(rng, drawing)
            key = "answer" if question not in LOOK and rng.random() < 0.15 else rng.choice(COLOUR_KEYS)
            found["colour"] = (key, mark.colour)
        elif field == "count":
            if fields == ("count",) and rng.random() < 0.6:
                question = "How many shapes are there?"
            found["count"] = (rng.choice(COUNT_KEYS), len(drawing.shapes))
        elif field == "things":
            found["things"] = things(rng, drawing)
        elif field == "exists":
            plain, kind = ask_exists(rng, drawing)
            named = rng.random() < 0.7
            question = plain.text if named else question
            found["exists"] = (rng.choice((kind, *YES_KEYS)) if named else kind, plain.answer == "Yes.")
        elif field == "number":
            question = rng.choice(READ) if rng.random() < 0.7 else question
            number = drawing.number or ""
            found["number"] = (rng.choice(NUMBER_KEYS), number if rng.random() < 0.4 else int(number))
        elif field == "text" and fields == ("text",) and rng.random() < 0.4:
            # Any question's answer, as the model gives it without JSON.
            plain = plain_question(rng, drawing)
            question, found["text"] = plain.text, ("answer", plain.answer)
        elif field == "text":
            found["text"] = (rng.choice(TEXT_KEYS), description(drawing))
    chosen = [found[field] for field in fields]
    rng.shuffle(chosen)
    answer = dict(chosen)
    if len(answer) < len(fields):  # two fields drew the same key
        return schema_object(rng, drawing)
    return " ".join(fields), question, answer


def plain_question(rng: Random, drawing: Drawing) -> Question:
    """A question of the first stage about something that is in the image."""
    if drawing.number is not None:
        return ask_number(drawing)
    asked: list[Callable[[], Question | None]] = [
        lambda: ask_count(drawing),
        lambda: ask_color(rng, drawing),
        lambda: ask_exists(rng, drawing)[0],
    ]
    return rng.choice(asked)() or ask_count(drawing)


def free_object(rng: Random, drawing: Drawing) -> tuple[str, dict[str, Any]]:
    """(question, answer) if any JSON object may be the answer: the model chooses the key, one for each kind."""
    if rng.random() < 0.4:
        return rng.choice(DESCRIBE), {"description": description(drawing)}
    plain = plain_question(rng, drawing)
    word = plain.answer.removesuffix(".").lower()
    if plain.kind == "number":
        return plain.text, {"number": int(word)}
    if plain.kind == "count":
        return plain.text, {"count": len(drawing.shapes)}
    if plain.kind == "exists":
        return plain.text, {"answer": word == "yes"}
    return plain.text, {"color": word}


def capitalised(value: Any) -> Any:
    """``value`` with every text in it capitalised, as some schemas have it."""
    if isinstance(value, dict):
        return {key: capitalised(one) for key, one in value.items()}
    if isinstance(value, list):
        return [capitalised(one) for one in value]
    return value.capitalize() if isinstance(value, str) else value


def form_question(rng: Random, drawing: Drawing, free: bool = True) -> Question:
    """A question whose answer is a JSON object; with ``free``, now and then one without a schema."""
    if free and rng.random() < 0.1:
        question, answer = free_object(rng, drawing)
        text, own = write(answer)
        # Not the first brace: where text is allowed as well, these checkpoints answer in text.
        return Question("free", question, text, (False, *[True] * (len(own) - 1)))
    kind, question, answer = schema_object(rng, drawing)
    if rng.random() < 0.12:
        answer = capitalised(answer)
    text, own = write(answer)
    return Question(kind, question, text, tuple(own))
