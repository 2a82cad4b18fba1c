"""Judges answers by the shapes of Anthropic's Messages API, as the anthropic client 2.14.0 has them in its types."""

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
