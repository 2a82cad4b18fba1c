"""Judges answers by the shapes of Ollama's API, as the ollama clients (Python 0.6.3, Node 0.6.3) have them."""

import json
from datetime import datetime
from typing import Any

COUNTS = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def check_error(body: Any) -> None:
    assert set(body) == {"error"}, body
    assert isinstance(body["error"], str)
    assert body["error"]


def check_line(line: Any, field: str, last: bool) -> None:
    """``field``: message of ``/api/chat``, response of ``/api/generate``."""
    optional = {"logprobs"} & set(line)
    end = {"done_reason", *COUNTS} if last else set()
    assert set(line) == {"model", "created_at", "done", field} | optional | end, line
    assert datetime.fromisoformat(line["created_at"]).tzinfo is not None
    assert line["done"] is last
    if last:
        assert line["done_reason"] in ("stop", "length")
        assert all(type(line[name]) is int and line[name] >= 0 for name in COUNTS), line
    if field == "response":
        assert isinstance(line["response"], str)
        return
    message = line["message"]
    assert set(message) - {"tool_calls"} == {"role", "content"}
    assert message["role"] == "assistant"
    for call in message.get("tool_calls", ()):
        assert set(call) == {"id", "function"}
        assert isinstance(call["function"]["arguments"], dict)


def lines_of(body: bytes, field: str = "message") -> list[Any]:
    """The lines of a whole stream that did not fail."""
    assert body.endswith(b"\n")
    lines = [json.loads(line) for line in body.splitlines()]
    for place, line in enumerate(lines):
        check_line(line, field, last=place == len(lines) - 1)
    return lines
