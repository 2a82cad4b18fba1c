"""``llava-api explain REQUEST``: what the model would be shown for a chat request, and why.

Needs only a checkpoint's config and tokenizer: no engine, no GPU and no weights.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from llava_api.chat.explain import Explained, explain
from llava_api.chat.model import ServedModel, open_model
from llava_api.chat.prepare import Preparer
from llava_api.cli.flags import DEMO, MODEL_HELP, add_flags, find_model, read_settings
from llava_api.cli.terminal import printable
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.errors import ApiError, StartupError
from llava_api.images.load import ImageLoader
from llava_api.images.previews import save_as_shown
from llava_api.limits.account import Account
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.explain import ExplainedImage, Explanation
from llava_api.server.body import parse
from llava_api.setting_types import Mark
from llava_api.settings import Settings


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("explain", help="show what the model is shown for a request", description=__doc__)
    parser.add_argument("request", metavar="REQUEST", help="file with the JSON body of a chat request; - for stdin")
    parser.add_argument("--model", default=DEMO, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, as POST /v1/explain answers")
    parser.add_argument("--save-images", type=Path, metavar="FOLDER", help="write what the model sees as PNG files")
    add_flags(parser, Mark.CHECKPOINT, Mark.CHECKPOINT_OVERRIDE, Mark.IMAGE_LIMIT, Mark.MODEL_INPUT)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    settings = read_settings(chosen)
    request = read_request(chosen.request)
    model = open_model(find_model(chosen.model), (request.model,), settings)
    try:
        explained = asyncio.run(explain_once(model, settings, request))
    except ApiError as error:
        raise StartupError(error.message if error.param is None else f"{error.param}: {error.message}") from error
    saved = [] if chosen.save_images is None else save(explained, model, chosen.save_images)
    if chosen.json:
        print(json.dumps(explained.explanation.model_dump(), ensure_ascii=False, indent=2))
    else:
        print(printable(page(explained.explanation)))
    for path in saved:
        print(path, file=sys.stderr if chosen.json else sys.stdout)


def read_request(source: str) -> ChatCompletionRequest:
    """The request in a file or on standard input, where ``model`` may be missing. Raises StartupError."""
    try:
        body = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {source} ({error.strerror})") from error
    try:
        data = json.loads(body)
        if isinstance(data, dict):
            body = json.dumps({"model": "the model", **data}).encode()
    except (ValueError, RecursionError):
        # parse says what is wrong.
        pass
    try:
        return parse(body, ChatCompletionRequest)
    except ApiError as error:
        raise StartupError(error.message) from error


async def explain_once(model: ServedModel, settings: Settings, request: ChatCompletionRequest) -> Explained:
    context = settings.max_model_len or model.checkpoint.context_length
    images = ImageLoader(model.image_mode, settings)
    try:
        grammars = GrammarChecker(model.checkpoint.tokenizer_json, model.stop_token_ids)
        return await explain(Preparer(model, settings, context, images, grammars), request, Account())
    finally:
        await images.close()


def save(explained: Explained, model: ServedModel, folder: Path) -> list[Path]:
    mode = model.image_mode
    try:
        folder.mkdir(parents=True, exist_ok=True)
        saved: list[Path] = []
        images = zip(explained.explanation.images, explained.rendered, strict=True)
        for number, (described, rendered) in enumerate(images, start=1):
            size = (described.shown_width, described.shown_height)
            grid = mode.at(described.detail).grid(size)
            saved += save_as_shown(rendered.pixels, grid, mode.normalisation, folder, f"image-{number}")
    except OSError as error:
        raise StartupError(f"cannot write to {folder} ({error.strerror})") from error
    return saved


def page(explanation: Explanation) -> str:
    """The explanation as text."""
    e = explanation
    lines = [
        f"LLaVA-{e.version}",
        f"  prompt family  {e.family}: {e.family_reason}",
        f"  image mode     {e.image_mode}: {e.image_mode_reason}",
        "",
        f"{e.prompt_tokens} tokens: {e.text_tokens} of text, {e.image_tokens} of images; {room(e)}",
        "",
        *[line for number, image in enumerate(e.images, start=1) for line in image_lines(number, image)],
        "The prompt, <image> for each image:",
        "",
        *[f"  {line}" for line in e.prompt.split("\n")],
        "",
        "Its token ids, images shortened:",
        "",
        f"  {shortened_ids(e)}",
        "",
        f"An answer ends at token {', '.join(map(str, e.stop_token_ids)) or 'none'}"
        + (f", or at the text {', '.join(map(repr, e.stop_texts))}." if e.stop_texts else "."),
    ]
    return "\n".join(lines)


def room(e: Explanation) -> str:
    if e.context_left < 1:
        return f"the context is {e.context_length}: too long by {1 - e.context_left} for an answer"
    return f"{e.context_left} of {e.context_length} left for the answer"


def image_lines(number: int, image: ExplainedImage) -> list[str]:
    turned = "" if image.orientation == 1 else f", EXIF orientation {image.orientation}"
    shown = "" if image.orientation == 1 else f", shown as {image.shown_width} x {image.shown_height}"
    across, down = image.grid
    one_tile = len(image.pixels_shape) == 3 or image.pixels_shape[0] == 1
    tiles = "one tile" if one_tile else f"a base tile and {across} x {down} tiles (across x down)"
    return [
        f"Image {number} ({image.param}): {image.format}, {image.width} x {image.height}{turned}{shown}",
        f"  {image.mode}: {tiles}, {image.image_tokens} tokens",
        f"  pixels {'x'.join(map(str, image.pixels_shape))}, SHA-256 {image.pixels_sha256}",
        "",
    ]


def shortened_ids(e: Explanation) -> str:
    parts: list[str] = []
    position = 0
    for place in e.placeholders:
        parts += map(str, e.prompt_token_ids[position : place.offset])
        token = e.prompt_token_ids[place.offset]
        parts.append(f"[image {place.image + 1}: {place.length} x {token}]")
        position = place.offset + place.length
    return " ".join([*parts, *map(str, e.prompt_token_ids[position:])])
