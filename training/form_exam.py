"""Ask fresh questions under JSON schemas and count the right objects, with vLLM inside this process.

``python -m training.form_exam FOLDER_OR_NAME``. The grammar is the server's, so the model
chooses only the values of an object. Images are drawn from seeds that training and validation never use.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from llava_api.chat.grammar import json_grammar
from llava_api.chat.model import ServedModel, open_model
from llava_api.chat.tools import INTRODUCTION
from llava_api.cli.flags import find_model
from llava_api.engine.base import EngineImage, GenerationRequest, Sampling
from llava_api.images.decode import Decoded
from llava_api.images.pixels import render_pixels
from llava_api.prompts.render import tokenize
from llava_api.prompts.segments import Turn
from llava_api.settings import Settings
from tests.support.small_engine import SmallEngine
from training.conversations import ask_color, ask_exists, colour_of, description
from training.drawings import COLOURS, KINDS, Drawing
from training.samples import exam_drawing
from training.tokenizer import VICUNA_SYSTEM

Schema = dict[str, Any]
Asked = tuple[str, Any] | None
"""(question, the right answer); None if this drawing does not suit the question."""
AT_ONCE = 32
MOST_TOKENS = 120
BACKEND = 'structured_outputs_config={"backend":"guidance"}'
ONE_SHAPE = ("What is in this image?", "Describe the shape.", "What shape is this and what color is it?")


def fields(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


COLOUR, KIND = {"enum": list(COLOURS)}, {"enum": list(KINDS)}
SHAPE = fields(shape=KIND, color=COLOUR)
FUNCTION = {"name": "report_shape", "description": "Report a shape and its color.", "parameters": SHAPE}


def color(rng: Random, drawing: Drawing) -> Asked:
    asked = ask_color(rng, drawing)
    return asked and (asked.text, {"color": asked.answer.removesuffix(".").lower()})


def shape(rng: Random, drawing: Drawing) -> Asked:
    if len(drawing.shapes) != 1:
        return None
    mark = drawing.shapes[0]
    return rng.choice(ONE_SHAPE), {"shape": mark.kind, "color": colour_of(drawing, mark.kind)[:-1].lower()}


def call(rng: Random, drawing: Drawing) -> Asked:
    asked = shape(rng, drawing)
    return asked and (asked[0], {"name": FUNCTION["name"], "arguments": asked[1]})


def count(rng: Random, drawing: Drawing) -> Asked:
    return ("How many shapes are there?", {"count": len(drawing.shapes)}) if drawing.shapes else None


def number(rng: Random, drawing: Drawing) -> Asked:
    return ("What number is written?", {"number": int(drawing.number)}) if drawing.number is not None else None


def yes_or_no(rng: Random, drawing: Drawing) -> Asked:
    asked, _ = ask_exists(rng, drawing)
    return asked.text, {"answer": asked.answer == "Yes."}


def text(rng: Random, drawing: Drawing) -> Asked:
    return "What is in this image?", {"description": description(drawing)}


def shapes(rng: Random, drawing: Drawing) -> Asked:
    return "Extract the shapes.", {"shapes": [{"color": mark.colour, "shape": mark.kind} for mark in drawing.shapes]}


@dataclass(frozen=True, slots=True)
class Form:
    schema: Schema
    ask: Callable[[Random, Drawing], Asked]
    functions: bool = False
    """Whether the system prompt offers ``FUNCTION``."""


FORMS = {
    "color": Form(fields(color=COLOUR), color),
    "shape and color": Form(SHAPE, shape),
    "count": Form(fields(count={"type": "integer", "minimum": 0, "maximum": 9}), count),
    "number": Form(fields(number={"type": "integer"}), number),
    "yes or no": Form(fields(answer={"type": "boolean"}), yes_or_no),
    "description": Form(fields(description={"type": "string"}), text),
    "list": Form(
        fields(shapes={"type": "array", "items": fields(color={"type": "string"}, shape={"type": "string"})}), shapes
    ),
    "call": Form(fields(name={"const": FUNCTION["name"]}, arguments=SHAPE), call, functions=True),
    "any object": Form({"type": "object"}, text),
}


def items(form: Form, name: str, count: int) -> Iterator[tuple[Drawing, str, Any]]:
    """``count`` of (drawing, question, right answer)."""
    index = 0
    while count:
        rng = Random(f"form exam {name} {index}")
        drawing = exam_drawing(rng)
        asked = form.ask(rng, drawing)
        index += 1
        if asked is not None:
            count -= 1
            yield drawing, *asked


def request(model: ServedModel, system: str, question: str, drawing: Drawing, name: str) -> GenerationRequest:
    length = model.image_mode.tokens(drawing.image.size)
    layout = model.family.layout(system, [Turn("user", question, (0,))])
    prompt = tokenize(layout, model.tokenizer, model.checkpoint.image_token_id, [length])
    image = EngineImage(
        pixels=render_pixels(Decoded(drawing.image, drawing.image.size), model.image_mode),
        offset=prompt.placeholders[0].offset,
        length=length,
        cache_key=name,
        size=model.image_mode.engine_size(drawing.image.size),
    )
    return GenerationRequest(name, prompt.token_ids, (image,), Sampling(0.0, 1.0, 1), None)


def examine(model: ServedModel, engine: SmallEngine, name: str, count: int) -> tuple[str, list[str]]:
    """(right/asked, the wrong answers)."""
    # Here and not above: vLLM reads its variables while it is imported, and the engine sets them.
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from llava_api.engine.vllm_engine import engine_input

    form = FORMS[name]
    system = f"{VICUNA_SYSTEM}\n\n{INTRODUCTION}\n{json.dumps(FUNCTION)}" if form.functions else VICUNA_SYSTEM
    wanted: dict[str, tuple[str, Any]] = {}
    given: dict[str, str] = {}
    for drawing, question, answer in items(form, name, count):
        made = request(model, system, question, drawing, f"{name} {len(wanted)}")
        wanted[made.request_id] = question, answer
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=MOST_TOKENS,
            structured_outputs=StructuredOutputsParams(grammar=json_grammar(form.schema)),
        )
        engine.engine.add_request(made.request_id, engine_input(made), sampling)
        if len(wanted) % AT_ONCE == 0 or len(wanted) == count:
            given |= {key: output.outputs[0].text for key, output in engine.last_outputs().items()}
    wrong = [
        f"{wanted[key][0]} {json.dumps(wanted[key][1])} (answered {text.strip()})"
        for key, text in given.items()
        if not same(text, wanted[key][1])
    ]
    return f"{count - len(wrong)}/{count}", wrong


def same(text: str, wanted: Any) -> bool:
    try:
        return bool(json.loads(text) == wanted)
    except ValueError:  # cut off
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder, or a bundled demo's name")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--report", type=Path, help="file for the figures and the wrong answers, as JSON")
    arguments = parser.parse_args()
    settings = Settings(engine_arg=[BACKEND])
    model = open_model(find_model(arguments.model), ("exam",), settings)
    shares: dict[str, str] = {}
    wrong: list[str] = []
    with SmallEngine(model, settings) as engine:
        for name in FORMS:
            shares[name], mistakes = examine(model, engine, name, arguments.count)
            wrong += mistakes
            print(f"{name}: {shares[name]}", *mistakes[:3], sep="\n  ", flush=True)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps({**shares, "wrong": wrong}, indent=1) + "\n")


if __name__ == "__main__":
    main()
