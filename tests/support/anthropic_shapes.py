"""Judges answers by the shapes of Anthropic's Messages API, as the anthropic client 2.14.0 has them in its types."""

import json
from typing import Any

ERROR_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
}


def check_error(body: Any) -> None:
    """``param`` and ``code`` are this server's."""
    assert set(body) == {"type", "error", "request_id"}, body
    assert body["type"] == "error"
    assert body["request_id"].startswith("req_")
    error = body["error"]
    assert set(error) == {"type", "message", "param", "code"}, error
    assert error["type"] in ERROR_TYPES
    assert error["message"]


STOP_REASONS = {"end_turn", "max_tokens", "stop_sequence", "tool_use"}
USAGE = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "service_tier",
}


def check_block(block: Any) -> None:
    if block["type"] == "text":
        assert set(block) == {"type", "text", "citations"}, block
        assert isinstance(block["text"], str)
        assert block["citations"] is None
    else:
        assert set(block) == {"type", "id", "name", "input"}, block
        assert block["type"] == "tool_use"
        assert block["id"].startswith("toolu_")
        assert isinstance(block["input"], dict)


def check_usage(usage: Any) -> None:
    assert set(usage) == USAGE, usage
    counts = [usage[field] for field in USAGE - {"service_tier"}]
    assert all(type(count) is int and count >= 0 for count in counts), usage
    assert usage["service_tier"] == "standard"


def check_end(end: Any) -> None:
    assert end["stop_reason"] in STOP_REASONS
    assert (end["stop_sequence"] is not None) == (end["stop_reason"] == "stop_sequence")


def check_message(message: Any, begun_only: bool = False) -> None:
    fields = {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}
    assert set(message) == fields, message
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["id"].startswith("msg_")
    check_usage(message["usage"])
    if begun_only:
        assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
        return
    assert message["content"]
    for block in message["content"]:
        check_block(block)
    check_end(message)


def events_of(body: bytes) -> list[Any]:
    """The events of a whole stream, each named by its type. Comments are left out."""
    assert body.endswith(b"\n\n")
    found = []
    for text in body.decode().removesuffix("\n\n").split("\n\n"):
        lines = [line for line in text.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def check_stream(body: bytes) -> None:
    """message_start; each block's start, deltas and stop, one block after the other; message_delta; message_stop.

    After a failure an error may stand in the place of any of them, and is the last.
    """
    events = events_of(body)
    failed = events[-1]["type"] == "error"
    if failed:
        check_error(events.pop())
    open_block: Any = None
    blocks = 0
    for number, event in enumerate(events):
        kind = event["type"]
        if number == 0:
            assert kind == "message_start"
            assert set(event) == {"type", "message"}
            check_message(event["message"], begun_only=True)
        elif kind == "content_block_start":
            assert open_block is None
            assert event["index"] == blocks
            open_block = event["content_block"]
            check_block(open_block)
            assert (open_block.get("text"), open_block.get("input")) in (("", None), (None, {}))
        elif kind == "content_block_delta":
            assert event["index"] == blocks
            expected = {"text": ("text_delta", "text"), "tool_use": ("input_json_delta", "partial_json")}
            delta_type, field = expected[open_block["type"]]
            assert set(event["delta"]) == {"type", field}
            assert event["delta"]["type"] == delta_type
            assert event["delta"][field]
        elif kind == "content_block_stop":
            assert event == {"type": kind, "index": blocks}
            assert open_block is not None
            open_block = None
            blocks += 1
        elif kind == "message_delta":
            assert open_block is None
            assert blocks > 0
            assert set(event) == {"type", "delta", "usage"}
            assert set(event["delta"]) == {"stop_reason", "stop_sequence"}
            check_end(event["delta"])
            check_usage(event["usage"])
            assert number == len(events) - 2
        else:
            assert event == {"type": "message_stop"}
            assert number == len(events) - 1
    assert failed or events[-1]["type"] == "message_stop"


def check_answer(path: str, kind: str, body: bytes) -> None:
    """An answer with status 200 on a path of the Messages API."""
    if path == "/v1/messages/count_tokens":
        counted = json.loads(body)
        assert set(counted) == {"input_tokens"}
        assert type(counted["input_tokens"]) is int
    elif kind == "text/event-stream":
        check_stream(body)
    else:
        check_message(json.loads(body))
