"""``POST /v1/messages`` and ``count_tokens``: replies, events of the stream and errors, as in Anthropic's API."""

from typing import Literal, Self

from llava_api.errors import ApiError, ErrorCode
from llava_api.protocol.wire import ErrorShape, WireObject

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""HTTP status -> Anthropic's name for the error."""


class AnthropicError(WireObject):
    type: str
    """Anthropic's name for the error: invalid_request_error, overloaded_error and others."""
    message: str
    """What is wrong and what to do."""
    param: str | None
    """The field to correct. An extension."""
    code: str | None
    """The error's code, as in an ErrorObject. An extension."""


class AnthropicErrorReply(ErrorShape):
    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: str

    @classmethod
    def of(cls, error: ApiError, request_id: str) -> Self:
        if error.code == ErrorCode.REQUEST_TIMEOUT:
            kind = "timeout_error"
        else:
            kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        body = AnthropicError(type=kind, message=error.message, param=error.param, code=error.code)
        return cls(error=body, request_id=request_id)
