"""The lines of a batch's files: requests in, answers and errors out, in OpenAI's form."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from llava_api.protocol.batches import BatchError, BatchUsage

MAX_ERRORS = 1000
"""Most errors that are listed of one file."""
MAX_CUSTOM_ID = 512
MAX_MODEL = 512
"""Longer names of models are not noted."""
PIECE_BYTES = 1_000_000
MAX_OBJECTS, MAX_VALUES = 25_000, 600_000
"""Most objects and lists, and most commas, of a line. Its endpoint permits a little less (``server/body.py``). Counted
before orjson makes millions of small objects; base64 has none of these characters."""
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
"""In OpenAI's words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended."""

    status: int
    request_id: str
    body: bytes
    """JSON: the same bytes as the reply of a request over HTTP."""


class Lines:
    """The requests of an input file, by number from 0. Blank lines are left out.

    Stays readable after the file is deleted, as long as it is open.
    """

    def __init__(self, path: Path, most: int) -> None:
        """Blocks: reads the file up to one request more than ``most``. Raises OSError."""
        self.starts, self.ends = array("q"), array("q")
        self.file_lines = array("q")
        """Their numbers in the file, from 1."""
        self.file = path.open("rb")
        start = end = 0
        number, blank = 1, True
        # A line may be as long as the file, and is not held as a whole here.
        while len(self) <= most:
            piece = self.file.readline(PIECE_BYTES)
            end += len(piece)
            blank = blank and not piece.strip()
            if piece and not piece.endswith(b"\n"):
                continue
            if not blank:
                self.starts.append(start)
                self.ends.append(end)
                self.file_lines.append(number)
            if not piece:
                break
            start, number, blank = end, number + 1, True

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, number: int) -> bytes:
        return os.pread(self.file.fileno(), self.ends[number] - self.starts[number], self.starts[number])

    def request(self, number: int) -> dict[str, Any]:
        """A line that has been checked."""
        found: dict[str, Any] = orjson.loads(self.read(number))
        return found

    def close(self) -> None:
        self.file.close()


@dataclass(slots=True)
class Findings:
    """What was found out about an input file before any of its requests is run."""

    errors: list[BatchError] = field(default_factory=list)
    model: str | None = None


def check(lines: Lines, endpoint: str, most: int, max_bytes: int) -> Findings:
    """Blocks: parses all lines. ``max_bytes``: longest line."""
    found = Findings()
    if not lines:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        found.errors.append(BatchError(code="empty_file", line=None, message=message))
    if len(lines) > most:
        message = f"The input file has more than the {most} requests that a batch may have: make several batches."
        found.errors.append(BatchError(code="too_many_tasks", line=None, message=message))
        return found
    seen: dict[str, int] = {}
    for number, file_line in enumerate(lines.file_lines):
        complaint = check_line(lines, number, endpoint, max_bytes, seen, found)
        if complaint is not None:
            code, message, param = complaint
            found.errors.append(BatchError(code=code, line=file_line, message=message, param=param))
        if len(found.errors) >= MAX_ERRORS:
            break
    return found


def check_line(
    lines: Lines, number: int, endpoint: str, max_bytes: int, seen: dict[str, int], found: Findings
) -> tuple[str, str, str | None] | None:
    """Code, message and parameter of what is wrong with a line. ``seen``: custom_id -> the line that had it."""
    if lines.ends[number] - lines.starts[number] > max_bytes:
        return "line_too_long", f"This line is longer than the {max_bytes} bytes that a request may have.", None
    line = lines.read(number)
    if line.count(b"{") + line.count(b"[") > MAX_OBJECTS or line.count(b",") > MAX_VALUES:
        return "too_many_parts", "This line has too many parts: send fewer messages, or shorter ones.", None
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError:
        request = None
    if not isinstance(request, dict):
        return "invalid_json_line", "This line is not parseable as valid JSON.", None
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if request.get(name) is None:
            return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
        if not isinstance(request[name], kind):
            return "invalid_type", f"'{name}' must be {'an object' if kind is dict else 'a string'}.", name
    custom_id: str = request["custom_id"]
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        return "invalid_custom_id", f"The custom_id must have 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
    if custom_id in seen:
        return "duplicate_custom_id", f"The custom_id is that of line {seen[custom_id]} too.", "custom_id"
    seen[custom_id] = lines.file_lines[number]
    if request["method"] != "POST":
        return "invalid_method", "The method must be POST.", "method"
    if request["url"] != endpoint:
        return "url_mismatch", f"The url must be the endpoint of the batch, {endpoint}.", "url"
    model = request["body"].get("model")
    if found.model is None and isinstance(model, str) and len(model) <= MAX_MODEL:
        found.model = model
    return None


def line_id(batch_id: str, number: int) -> str:
    """The id of a line in the output, of which ``recover`` reads the number."""
    return f"batch_req_{batch_id.removeprefix('batch_')}{number:08x}"


def answered(batch_id: str, number: int, custom_id: str, answer: Answer) -> bytes:
    """A line of the output or of the error file. The reply's bytes are in it as they are."""
    head = orjson.dumps({"id": line_id(batch_id, number), "custom_id": custom_id})[:-1]
    about = orjson.dumps({"status_code": answer.status, "request_id": answer.request_id})[:-1]
    return head + b',"response":' + about + b',"body":' + answer.body + b'},"error":null}\n'


def expired(batch_id: str, number: int, custom_id: str) -> bytes:
    line = {"id": line_id(batch_id, number), "custom_id": custom_id, "response": None, "error": EXPIRED}
    return orjson.dumps(line) + b"\n"


def recover(path: Path, usage: BatchUsage) -> Iterator[int]:
    """The numbers of the lines that an output has, whose tokens are added to ``usage``. Blocks.

    What follows a line that was not written completely is cut off: it was never counted.
    """
    if not path.exists():
        return
    with path.open("r+b") as output:
        end = 0
        for line in output:
            try:
                read: dict[str, Any] = orjson.loads(line)
                number, response = int(read["id"][-8:], 16), read["response"]
                complete = line.endswith(b"\n")
            except (ValueError, TypeError, KeyError):
                complete = False
            if not complete:
                output.truncate(end)
                os.fsync(output.fileno())
                return
            end += len(line)
            if response is not None:
                add_usage(usage, response["body"])
            yield number


def add_usage(usage: BatchUsage, reply: dict[str, Any]) -> None:
    """The tokens of a chat completion, a text completion or a response."""
    used = reply.get("usage") or {}
    taken = used.get("input_tokens", used.get("prompt_tokens", 0))
    given = used.get("output_tokens", used.get("completion_tokens", 0))
    details = used.get("input_tokens_details") or used.get("prompt_tokens_details") or {}
    usage.input_tokens += taken
    usage.output_tokens += given
    usage.total_tokens += taken + given
    usage.input_tokens_details.cached_tokens += details.get("cached_tokens") or 0
