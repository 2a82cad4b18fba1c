"""``llava-api batch run``: run a file of OpenAI's batch lines at any OpenAI-compatible API.

The output has OpenAI's form. Images may be named by their path. After any end, the same command goes on.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from llava_api.cli.bulk.command import add_flags, existing_file, work
from llava_api.cli.bulk.images import ImageFolder
from llava_api.cli.bulk.job import (
    Item,
    ItemFailed,
    Job,
    Line,
    Reply,
    Request,
    batch_line,
    failing,
    parse,
)
from llava_api.errors import StartupError
from llava_api.evaluation.files import numbered_lines

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations")
"""A file from somebody else must not reach what else the key opens."""
LONGEST_PATH = 4096
SENT_AS_IT_IS = ("data:", "http://", "https://")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("batch", help="run a file of OpenAI's batch requests", description=__doc__)
    run_parser = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "run", help="send the requests of a file", description=__doc__
    )
    run_parser.add_argument("requests", metavar="REQUESTS", help="JSONL file: custom_id, method, url, body")
    run_parser.add_argument("--output", required=True, metavar="FILE", help="JSONL file for the answers")
    run_parser.add_argument(
        "--image-folder",
        metavar="FOLDER",
        help="where images that are named by a path may be; without it, the folder of the requests file",
    )
    add_flags(run_parser)
    run_parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    requests = existing_file(chosen.requests, "REQUESTS")
    output = Path(chosen.output).expanduser()
    if output.exists() and output.samefile(requests):
        raise StartupError("--output is the file of the requests: name another")
    images = ImageFolder(Path(chosen.image_folder) if chosen.image_folder else requests.parent)
    job = Job(partial(read_items, requests, images), line_for, key_of, b'{"id":"batch_req_')
    sys.exit(work(job, output, chosen))


def line_for(item: Item, reply: Reply) -> Line:
    return batch_line(item.custom_id, reply)


def key_of(line: Line) -> str:
    line["response"]["status_code"]
    return str(line["custom_id"])


def read_items(requests: Path, images: ImageFolder) -> Iterator[Item]:
    """An item for each line that is not empty. One for a bad line fails when it is prepared."""
    seen: set[str] = set()
    for number, text in numbered_lines(requests):
        custom_id = None
        try:
            line = parse(text)
            custom_id = read_custom_id(line)
            if custom_id in seen:
                raise ItemFailed("duplicate_custom_id", f'custom_id "{custom_id}" is that of an earlier line.')
            seen.add(custom_id)
            yield Item(custom_id, custom_id, partial(prepare, line, images))
        except ItemFailed as error:
            yield failing(number, custom_id, error)


def read_custom_id(line: Line) -> str:
    """Raises ItemFailed."""
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise ItemFailed("missing_required_parameter", "custom_id is missing: give each line a text of its own.")
    return custom_id


def prepare(line: Line, images: ImageFolder) -> Request:
    """Raises ItemFailed."""
    body, url = line.get("body"), line.get("url")
    if line.get("method") != "POST":
        raise ItemFailed("invalid_method", 'method must be "POST".')
    if url not in ENDPOINTS:
        raise ItemFailed("invalid_url", f"url must be one of {', '.join(ENDPOINTS)}.")
    if not isinstance(body, dict):
        raise ItemFailed("invalid_request", "body must be an object: the request itself.")
    if body.get("stream"):
        raise ItemFailed("invalid_request", "stream is not possible in a batch: leave it out.")
    found = [place for name in ("messages", "input") for place in image_places(body.get(name))]
    for holder, name in found:
        source = holder[name]
        if not source.lower().startswith(SENT_AS_IT_IS) and len(source) < LONGEST_PATH:
            holder[name] = images.data_url(source)
    try:
        return Request(url.removeprefix("/v1/"), orjson.dumps(body), len(found))
    except orjson.JSONEncodeError as error:
        raise ItemFailed("invalid_request", "body is nested too deeply.") from error


def image_places(messages: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the images of chat completions and responses are: an object, and the name of its field."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            image = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(image, dict) and isinstance(image.get("url"), str):
                yield image, "url"
            elif isinstance(image, str):
                yield part, "image_url"
