"""Samples as the model is shown them, with the learned tokens marked."""

import os
import sys
from itertools import groupby

from llava_api.chat.explain import describe_image
from llava_api.cli.explain import image_lines
from llava_api.cli.terminal import printable
from llava_api.errors import StartupError
from llava_api.finetune.encode import Encoded, encode
from llava_api.finetune.image_files import read_image, render_image
from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import BadSample, Sample

IN_COLOUR, IN_TEXT = ("\x1b[1;32m", "\x1b[0m"), ("[[", "]]")
"""What is written around learned tokens: green on a terminal."""


def preview(sample: Sample, model: ModelInput) -> str:
    """Raises StartupError for an image whose pixels are damaged."""
    try:
        measured = [read_image(path, model) for path in sample.images]
        images = [describe_image(image, render_image(image, model)) for image in measured]
    except BadSample as error:
        raise StartupError(f"sample {sample.index} ({sample.id}) {error}") from error
    encoded = encode(sample, model, [image.tokens for image in measured])
    lines = [f"Sample {sample.index} ({sample.id}): {len(encoded.learned)} tokens, {sum(encoded.learned)} learned", ""]
    for number, image in enumerate(images, start=1):
        lines += image_lines(number, image)
    marks = IN_COLOUR if sys.stdout.isatty() and "NO_COLOR" not in os.environ else IN_TEXT
    text = marked_text(encoded, model, marks)
    return "\n".join([*map(printable, lines), *[f"  {line}" for line in text.split("\n")], ""])


def marked_text(encoded: Encoded, model: ModelInput, marks: tuple[str, str]) -> str:
    """The text of all tokens, the learned ones between ``marks``, each image as the number of its tokens."""
    tokens, shown, position = encoded.prompt.token_ids, "", 0
    for place in encoded.prompt.placeholders:
        shown += runs(encoded, model, marks, position, place.offset)
        shown += f"<image {place.image + 1}: {place.length} tokens>"
        position = place.offset + place.length
    return shown + runs(encoded, model, marks, position, len(tokens))


def runs(encoded: Encoded, model: ModelInput, marks: tuple[str, str], start: int, stop: int) -> str:
    parts = []
    pairs = zip(encoded.learned[start:stop], encoded.prompt.token_ids[start:stop], strict=True)
    for learned, run in groupby(pairs, key=lambda pair: pair[0]):
        text = b"".join(model.tokenizer.token_bytes(token) for _, token in run).decode("utf-8", "replace")
        parts.append(printable(text).join(marks if learned else ("", "")))
    return "".join(parts)
