"""How log lines look: for people as they are, for machines one JSON object a line. And the line of a request.

Nothing of a client's can begin a line of its own or look like another field: a request's values are cut, and written as
JSON where they are more than plain words.
"""

import json
import logging
import re
from datetime import UTC, datetime

from llava_api.telemetry.record import RequestRecord

MOST_LETTERS = 64
"""Of a value that a client has chosen."""
MOST_PROMPT_LETTERS = 20_000
PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")
FIELDS = "fields"
"""Name under which a log record carries the fields of a request."""

Fields = dict[str, str | int | float | bool | None]


def time_of(unix_seconds: float) -> str:
    """ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines(logging.Formatter):
    """One object a line; ASCII, so that no terminal and no log reader finds a line break in it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time_of(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanLines(logging.Formatter):
    """Our own lines, the time in front; of requests their fields."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields: Fields | None = getattr(record, FIELDS, None)
        said = record.message
        if fields is not None:
            said = " ".join(f"{name}={written(value)}" for name, value in fields.items() if value not in (None, 0, ""))
        return f"llava-api: {time_of(record.created)} {said}"


def written(value: object) -> str:
    """A value of a field: plain, or in JSON's quotes, in ASCII."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


def shown(text: str, most: int = MOST_LETTERS) -> str:
    """Cut; what a client sends must not fill the disk."""
    return text if len(text) <= most else f"{text[:most]}..."


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def request_fields(record: RequestRecord, trace_id: str | None = None) -> Fields:
    """What is told of a request: no prompt but by ``--log-prompts``, no picture, no picture's URL, no key."""
    fields: Fields = {
        "request_id": record.request_id,
        "key": record.key,
        "client": record.client,
        "method": shown(record.method, 16),
        "route": record.route,
        "status": record.status,
        "outcome": record.outcome,
        "code": record.error or None,
        "model": None if record.model is None else shown(record.model),
        "stream": record.stream or None,
        "images": record.images,
        "image_tokens": record.image_tokens,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "finish_reason": ",".join(dict.fromkeys(record.finish_reasons)) or None,
        "queue_ms": milliseconds(record.queue_seconds),
        "ttft_ms": milliseconds(record.first_token_seconds),
        "total_ms": milliseconds(record.seconds),
    }
    if record.route == "other":
        fields["path"] = shown(record.path)
    if trace_id is not None:
        fields["trace_id"] = trace_id
    if record.prompt is not None:
        fields["prompt"] = shown(record.prompt, MOST_PROMPT_LETTERS)
    return fields
