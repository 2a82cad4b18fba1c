"""What training and its validation show the model: drawings, and conversations about them."""

from dataclasses import dataclass
from random import Random

from training.conversations import (
    NO_IMAGE_QUESTIONS,
    SELF_ANSWER,
    SYSTEM_PROMPTS,
    Question,
    conversation,
    exam_conversation,
)
from training.drawings import Drawing, new_drawing, random_size, through_jpeg
from training.forms import form_question
from training.functions import call, draw_functions, functions_text
from training.tokenizer import VICUNA_SYSTEM

FORMS = 0.38
"""Share of the second stage's conversations whose answers are JSON."""
CALLS = 0.25
"""Share of those in which every answer is the call of a function."""
OFFERED = 0.05
"""Share of the other conversations, in which functions are offered and not called."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One user turn with its answer; ``drawing`` is an index into the sample's drawings."""

    drawings: tuple[int, ...]
    question: Question


@dataclass(frozen=True, slots=True)
class Sample:
    system: str
    drawings: tuple[Drawing, ...]
    turns: tuple[Turn, ...]


def about(system: str, drawing: Drawing, asked: list[Question]) -> Sample:
    """A conversation about one drawing."""
    return Sample(system, (drawing,), (Turn((0,), asked[0]), *(Turn((), question) for question in asked[1:])))


def random_system(rng: Random) -> str:
    return VICUNA_SYSTEM if rng.random() < 0.93 else rng.choice(SYSTEM_PROMPTS)


def random_drawing(rng: Random, largest: int) -> Drawing:
    drawing = new_drawing(rng, random_size(rng, 112, largest))
    if rng.random() < 0.35:
        return Drawing(through_jpeg(rng, drawing.image), drawing.shapes, drawing.digits)
    return drawing


def training_sample(rng: Random, largest: int, functions: str = "") -> Sample:
    """A drawing with one to four questions; now and then two drawings, no image, another system prompt."""
    system = random_system(rng) + functions
    roll = rng.random()
    if roll < 0.03:
        question = Question("text", rng.choice(NO_IMAGE_QUESTIONS), SELF_ANSWER)
        return Sample(system, (), (Turn((), question),))
    first = random_drawing(rng, largest)
    if roll < 0.12:
        second = random_drawing(rng, largest)
        turns = [Turn((0,), question) for question in conversation(rng, first, 1)[:1]]
        turns += [Turn((), question) for question in conversation(rng, first, 1)[:1] if rng.random() < 0.3]
        later = conversation(rng, second, 2)
        turns.append(Turn((1,), later[0]))
        turns += [Turn((), question) for question in later[1:]]
        return Sample(system, (first, second), tuple(turns))
    return about(system, first, conversation(rng, first, 4))


def mixed_sample(rng: Random, largest: int) -> Sample:
    """The second stage's: one of the first stage's conversations, or one with answers in JSON."""
    roll = rng.random()
    if roll < FORMS * CALLS:
        return call_sample(rng, random_drawing(rng, largest), rng.choice((1, 1, 2)))
    if roll < FORMS:
        return form_sample(rng, random_drawing(rng, largest), rng.choice((1, 1, 2, 3)))
    functions = functions_text(rng, draw_functions(rng, ())) if rng.random() < OFFERED else ""
    return training_sample(rng, largest, functions)


def form_sample(rng: Random, drawing: Drawing, questions: int) -> Sample:
    return about(random_system(rng), drawing, [form_question(rng, drawing) for _ in range(questions)])


def call_sample(rng: Random, drawing: Drawing, questions: int) -> Sample:
    """Every answer calls one of the functions that the system prompt describes."""
    asked = [form_question(rng, drawing, free=False) for _ in range(questions)]
    functions = draw_functions(rng, asked)
    calls = [call(question, function.name) for question, function in zip(asked, functions, strict=False)]
    return about(random_system(rng) + functions_text(rng, functions), drawing, calls)


def exam_drawing(rng: Random) -> Drawing:
    drawing = new_drawing(rng, random_size(rng, 112, 2000))
    if rng.random() < 0.5:
        return Drawing(through_jpeg(rng, drawing.image), drawing.shapes, drawing.digits)
    return drawing


def exam_sample(rng: Random) -> Sample:
    drawing = exam_drawing(rng)
    return about(VICUNA_SYSTEM, drawing, exam_conversation(rng, drawing))


def form_exam_sample(rng: Random) -> Sample:
    drawing = exam_drawing(rng)
    return call_sample(rng, drawing, 1) if rng.random() < CALLS else form_sample(rng, drawing, 1)
