"""The two formats of log lines, text and JSON, and the fields of a request's line.

A client cannot forge lines or fields: its values are cut, and quoted as JSON unless they are plain words.
"""

import json
import logging
import re
from datetime import UTC, datetime

from llava_api.telemetry.record import RequestRecord

MOST_LETTERS = 64
"""Longest value from a client; the rest is cut, so that no client can fill the disk."""
MOST_PROMPT_LETTERS = 20_000
MOST_IGNORED_LETTERS = 256
PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")
FIELDS = "fields"
"""The attribute of a log record that holds the fields of a request."""

Fields = dict[str, str | int | float | bool | None]


def time_of(unix_seconds: float) -> str:
    """ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines(logging.Formatter):
    """One JSON object a line. In ASCII, because some programs also break lines at Unicode separators."""

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
    """``llava-api:``, the time, and the message, or the fields of a request."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields: Fields | None = getattr(record, FIELDS, None)
        text = record.message
        if fields is not None:
            text = " ".join(f"{name}={quoted(value)}" for name, value in fields.items() if value not in (None, 0, ""))
        return f"llava-api: {time_of(record.created)} {text}"


def quoted(value: object) -> str:
    """The value in ASCII, as JSON unless it is one plain word."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


def cut(text: str, most: int = MOST_LETTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def request_fields(record: RequestRecord, trace_id: str | None = None) -> Fields:
    """The fields of a request's line: never keys, images or their URLs, and prompts only with ``--log-prompts``."""
    fields: Fields = {
        "request_id": record.request_id,
        "key": record.key,
        "client": record.client,
        "method": cut(record.method, 16),
        "route": record.route,
        "status": record.status,
        "outcome": record.outcome,
        "code": record.error or None,
        "model": None if record.model is None else cut(record.model),
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
    if record.ignored:
        fields["ignored"] = cut(record.ignored, MOST_IGNORED_LETTERS)
    if record.route == "other":
        fields["path"] = cut(record.path)
    if trace_id is not None:
        fields["trace_id"] = trace_id
    if record.prompt is not None:
        fields["prompt"] = cut(record.prompt, MOST_PROMPT_LETTERS)
    return fields
