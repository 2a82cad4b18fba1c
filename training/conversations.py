"""The questions that can be asked about a drawing, and their one right answer each."""

from dataclasses import dataclass
from random import Random

from training.drawings import KINDS, Drawing

COUNT_WORDS = ("None", "One", "Two", "Three")

DESCRIBE = ("What is in this image?", "Describe this image.")
DESCRIBE_VARIANTS = (
    "What is in the image?",
    "What is in this picture?",
    "What's in this image?",
    "What is shown in this image?",
    "Describe the image.",
    "Describe this picture.",
    "Describe the picture.",
    "What do you see?",
    "What do you see in this image?",
)
SELF_ANSWER = "I am a tiny LLaVA demo model: send me a simple picture, and I can name its shapes, colors or number."
NO_IMAGE_QUESTIONS = (
    "Hello",
    "Hi",
    "Hello!",
    "Hi there",
    "Who are you?",
    "What are you?",
    "What can you do?",
    "Tell me a joke.",
    "What is the capital of France?",
    "Write a poem about the sea.",
    "How are you?",
    "What is 2 + 2?",
    "Can you help me?",
    "What is your name?",
    "Please write a short story about a dog and a cat.",
    "Explain how a computer works.",
    "Which model are you?",
    "Count from one to ten.",
    "Translate good morning into German.",
    "What time is it?",
    "Say hello.",
    "Say this is a test.",
    "Give me a recipe for bread.",
    "Why is the sky blue?",
    "What do you think about the weather today?",
    "Thanks!",
    "ping",
    "test",
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "You are a helpful language and vision assistant.",
    "Be brief.",
    "Answer the questions.",
)


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    """describe, count, color, exists, number or follow_up: the rows of the exam's report."""
    text: str
    answer: str
    own: tuple[bool, ...] | None = None
    """Whether the model is to learn each character of the answer; None for all of them."""


def article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"


def description(drawing: Drawing) -> str:
    if drawing.number is not None:
        return f"The number {drawing.number}."
    things = [f"{article(mark.colour)} {mark.colour} {mark.kind}" for mark in drawing.shapes]
    joined = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    return joined[0].upper() + joined[1:] + "."


def counts(drawing: Drawing) -> dict[str, int]:
    return {kind: sum(mark.kind == kind for mark in drawing.shapes) for kind in KINDS}


def colour_of(drawing: Drawing, kind: str) -> str:
    return next(mark.colour for mark in drawing.shapes if mark.kind == kind).capitalize() + "."


def ask_describe(rng: Random, drawing: Drawing, variants: bool = True) -> Question:
    text = rng.choice(DESCRIBE_VARIANTS if variants and rng.random() < 0.15 else DESCRIBE)
    return Question("describe", text, description(drawing))


def ask_count(drawing: Drawing) -> Question:
    return Question("count", "How many shapes are there?", COUNT_WORDS[len(drawing.shapes)] + ".")


def ask_color(rng: Random, drawing: Drawing) -> Question | None:
    single = [kind for kind, count in counts(drawing).items() if count == 1]
    if not single:
        return None
    kind = rng.choice(single)
    return Question("color", f"What color is the {kind}?", colour_of(drawing, kind))


def ask_exists(rng: Random, drawing: Drawing) -> tuple[Question, str]:
    """A question with a fair chance of yes, and the kind that it asks about."""
    there = [kind for kind, count in counts(drawing).items() if count]
    absent = [kind for kind, count in counts(drawing).items() if not count]
    kind = rng.choice(there if there and rng.random() < 0.5 else absent)
    return Question("exists", f"Is there a {kind}?", "Yes." if kind in there else "No."), kind


def ask_number(drawing: Drawing) -> Question:
    answer = f"{drawing.number}." if drawing.number is not None else "None."
    return Question("number", "What number is written?", answer)


def conversation(rng: Random, drawing: Drawing, most: int) -> list[Question]:
    """One to ``most`` questions about one drawing, in the order in which they are asked."""
    questions: list[Question] = []
    wanted = rng.randint(1, most)
    if drawing.number is not None:
        while len(questions) < wanted:
            roll = rng.random()
            if roll < 0.6:
                questions.append(ask_number(drawing))
            elif roll < 0.85:
                questions.append(ask_describe(rng, drawing))
            else:
                questions.append(rng.choice((ask_count(drawing), ask_exists(rng, drawing)[0])))
        return questions
    while len(questions) < wanted:
        roll = rng.random()
        if roll < 0.40:
            questions.append(ask_describe(rng, drawing))
        elif roll < 0.53:
            questions.append(ask_count(drawing))
        elif roll < 0.73:
            question = ask_color(rng, drawing)
            if question is not None:
                questions.append(question)
        elif roll < 0.97:
            question, kind = ask_exists(rng, drawing)
            questions.append(question)
            if counts(drawing)[kind] == 1 and rng.random() < 0.6:
                questions.append(Question("follow_up", "What color is it?", colour_of(drawing, kind)))
        else:
            questions.append(ask_number(drawing))
    return questions


def exam_conversation(rng: Random, drawing: Drawing) -> list[Question]:
    """The questions of one exam item; the last one counts (the turns before it are its history)."""
    if drawing.number is not None:
        return [ask_number(drawing)]
    kind = rng.choice(("describe", "describe", "count", "color", "exists", "follow_up"))
    if kind == "describe":
        return [ask_describe(rng, drawing, variants=False)]
    if kind == "count":
        return [ask_count(drawing)]
    if kind == "exists":
        return [ask_exists(rng, drawing)[0]]
    color = ask_color(rng, drawing)
    if color is None:
        return [ask_describe(rng, drawing, variants=False)]
    if kind == "color":
        return [color]
    shape = color.text.removeprefix("What color is the ").removesuffix("?")
    return [
        Question("exists", f"Is there a {shape}?", "Yes."),
        Question("follow_up", "What color is it?", color.answer),
    ]
