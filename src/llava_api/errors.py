"""Every error that a caller may see, as one tree.

::

    ApiError                     status, type, code, param, message
    +-- InvalidRequest           400 invalid_request_error
    |   +-- Unauthorized         401 code invalid_api_key
    |   +-- Forbidden            403 code host_not_allowed or origin_not_allowed
    |   +-- BadImage             400 code invalid_image
    |   +-- ContextLengthExceeded 400 code context_length_exceeded
    |   +-- NotFound             404 code not_found
    |   |   +-- ModelNotFound    404 code model_not_found
    |   +-- MethodNotAllowed     405 code method_not_allowed
    |   +-- RequestTooLarge      413 code request_too_large
    |   +-- BadHttp              400 code invalid_http
    |   +-- HeadersTooLarge      431 code headers_too_large
    |   +-- ReceiveTimeout       408 code receive_timeout
    |   +-- UnsupportedEncoding  415 code unsupported_content_encoding
    +-- RateLimited              429 type requests or tokens, code rate_limit_exceeded
    +-- Unavailable              503 server_error
    |   +-- NotReady             503 code model_not_ready
    |   +-- Busy                 503 code server_busy
    |   +-- Draining             503 code server_stopping
    |   +-- EngineStopped        503 code engine_stopped
    |   +-- RequestTimedOut      503 code request_timeout
    +-- EngineFailed             500 server_error, code engine_failed

    InvalidGrammar               the engine could not keep to a grammar; ``chat`` makes an InvalidRequest of it
    StartupError                 the server cannot start; one sentence for the person at the terminal

Errors are raised, never returned; ``server/error_handlers.py`` alone writes them on the wire. Messages are fixed
texts that say what to do: no paths, no object addresses, no echoed picture data. This module imports nothing of
the package.
"""

INTERNAL = "The server made a mistake and has noted it; give the x-request-id to whoever runs it."


class ApiError(Exception):
    """An error with its place in OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_seconds: float | None = None
    """When to come again, where coming again may help."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The wire form: all four keys, always."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class BadImage(InvalidRequest):
    code = "invalid_image"

    def at(self, param: str) -> "BadImage":
        """The same complaint about another place: work on one picture may be shared by several requests."""
        return BadImage(self.message, param=param, code=self.code)


class Unauthorized(InvalidRequest):
    status = 401
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """Nobody's request may come this way, whatever is in it."""

    status = 403


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class RateLimited(ApiError):
    """The caller has used up what it may; ``kind``, requests or tokens, is OpenAI's type of the error."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, kind: str, retry_after_seconds: float, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.type = kind
        self.retry_after_seconds = retry_after_seconds


class BadHttp(InvalidRequest):
    """No HTTP, or HTTP that two servers might read in two ways."""

    code = "invalid_http"


class HeadersTooLarge(InvalidRequest):
    status = 431
    code = "headers_too_large"


class ReceiveTimeout(InvalidRequest):
    """The request did not come in time."""

    status = 408
    code = "receive_timeout"


class UnsupportedEncoding(InvalidRequest):
    status = 415
    code = "unsupported_content_encoding"


class Unavailable(ApiError):
    """Not now; the same request may be answered later."""

    status = 503
    retry_after_seconds = 5.0


class NotReady(Unavailable):
    code = "model_not_ready"


class Busy(Unavailable):
    code = "server_busy"


class Draining(Unavailable):
    code = "server_stopping"
    retry_after_seconds = 1.0
    """Where there is another replica, the next connection meets it; where there is none, five would not do either."""


class EngineStopped(Unavailable):
    """The whole engine is gone, with all that it was working on."""

    code = "engine_stopped"


class RequestTimedOut(Unavailable):
    code = "request_timeout"


class EngineFailed(ApiError):
    """The engine could not make one answer; others are not touched."""

    status = 500
    code = "engine_failed"


class InvalidGrammar(Exception):
    """A grammar that cannot be compiled; the message says why, in llguidance's words about the schema in it."""


class StartupError(Exception):
    """The server cannot start; the message is shown as it is, without a traceback."""
