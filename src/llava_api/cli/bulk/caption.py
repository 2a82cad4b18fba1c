"""``llava-api caption FOLDER``: ask one question about each image of a folder, at any OpenAI-compatible API.

The answers go to a JSONL file, and if asked for to a CSV file and to text files beside the images. After any end, the
same command goes on.
"""

import argparse
import csv
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from llava_api.cli.bulk.command import add_flags, existing_file, model_of, work
from llava_api.cli.bulk.images import read_image
from llava_api.cli.bulk.job import Item, ItemFailed, Job, Line, Reply, Request, answer_text, chat_request
from llava_api.cli.chat.command import add_answer_flags
from llava_api.cli.conversation import Sampling
from llava_api.errors import StartupError

QUESTION = "Provide a one-sentence caption for the provided image."
"""From LLaVA's own training data."""
MAX_TOKENS = 512
SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("caption", help="caption a folder of images", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", metavar="FOLDER", help="a folder with all folders in it, a pattern as 'a/*.png', or files"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL file: image, caption")
    parser.add_argument("--csv", metavar="FILE", help="write the captions to this CSV file as well, at the end")
    parser.add_argument(
        "--sidecars", action="store_true", help="write each caption to IMAGE.txt beside its image as well, at the end"
    )
    parser.add_argument("--question", default=QUESTION, metavar="TEXT", help=f'what to ask ("{QUESTION}")')
    parser.add_argument("--schema", metavar="FILE", help="JSON schema of the answers: they become objects")
    parser.add_argument("--model", metavar="NAME", help="which of the server's models (the first)")
    add_answer_flags(parser, temperature=0, max_tokens=MAX_TOKENS)
    add_flags(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    images = find_images(chosen.sources)
    if chosen.sidecars:
        check_sidecars(images.values())
    schema = read_schema(existing_file(chosen.schema, "--schema")) if chosen.schema else None
    fields: Line = {**Sampling(chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed).fields()}
    if schema is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "caption", "schema": schema}}
    prepare = partial(prepare_image, model_of(chosen), chosen.question, fields)
    job = Job(
        partial(read_items, images, prepare), partial(line_for, schema is not None), key_of, line_start=b'{"image":'
    )
    output = Path(chosen.output).expanduser()
    exit_code = work(job, output, chosen)
    try:
        if chosen.csv:
            write_csv(output, Path(chosen.csv).expanduser(), list((schema or {}).get("properties", ())) or ["caption"])
        if chosen.sidecars:
            for line in read_captions(output):
                images[line["image"]].with_suffix(".txt").write_text(as_text(line["caption"]) + "\n", encoding="utf-8")
    except OSError as error:
        raise StartupError(f"{error.filename} cannot be written ({error.strerror})") from error
    sys.exit(exit_code)


def find_images(sources: Sequence[str]) -> dict[str, Path]:
    """The name of each image in the output -> its file, sorted. Files of a folder are named by their path in it.

    Raises StartupError if there are none.
    """
    found: dict[str, Path] = {}
    for source in map(os.path.expanduser, sources):
        if os.path.isdir(source):
            paths = (Path(parent, name) for parent, _, names in os.walk(source) for name in names)
            found.update((str(path.relative_to(source)), path) for path in paths if is_image(path))
        elif os.path.isfile(source):
            # A file that is named counts, whatever its suffix.
            found[source] = Path(source)
        else:
            found.update((name, Path(name)) for name in glob.iglob(source, recursive=True) if is_image(Path(name)))
    if not found:
        raise StartupError(f"there is no image in {', '.join(sources)}: name a folder, a pattern or files")
    return dict(sorted(found.items()))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def check_sidecars(paths: Iterable[Path]) -> None:
    """Raises StartupError if two images would have the same text file."""
    for path, number in Counter(path.with_suffix(".txt") for path in paths).items():
        if number > 1:
            raise StartupError(f"--sidecars: {number} images would have the caption file {path}: rename them")


def read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise StartupError(f"--schema {path} is not valid JSON") from error
    if not isinstance(schema, dict):
        raise StartupError(f"--schema {path} is not a JSON schema: an object is needed")
    return schema


def read_items(images: dict[str, Path], prepare: "partial[Request]") -> Iterator[Item]:
    for name, path in images.items():
        yield Item(name, os.fsencode(name).decode(errors="replace"), partial(prepare, path))


def prepare_image(model: str, question: str, fields: Line, path: Path) -> Request:
    """Raises ItemFailed."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ItemFailed("invalid_name", "The file's name is not UTF-8: rename it.") from error
    return chat_request(model, question, [read_image(path)], fields)


def line_for(is_json: bool, item: Item, reply: Reply) -> Line:
    text = answer_text(reply)
    try:
        return {"image": item.key, "caption": orjson.loads(text) if is_json else text}
    except orjson.JSONDecodeError as error:
        message = "The answer is not valid JSON: --max-tokens may have cut it."
        raise ItemFailed("invalid_response", message) from error


def key_of(line: Line) -> str:
    line["caption"]
    return str(line["image"])


def read_captions(output: Path) -> Iterator[Line]:
    with open(output, "rb") as lines:
        yield from map(orjson.loads, lines)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def write_csv(output: Path, table: Path, columns: list[str]) -> None:
    """One row for each image. The properties of a schema have columns of their own."""
    with open(table, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", *columns])
        for line in read_captions(output):
            caption = line["caption"]
            values = caption if columns != ["caption"] and isinstance(caption, dict) else {"caption": caption}
            rows.writerow([line["image"], *(as_text(values[name]) if name in values else "" for name in columns)])
