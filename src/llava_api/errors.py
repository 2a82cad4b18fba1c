"""Every error that a caller may see. Its class decides the type, and the status and the code unless they are given.

Errors are raised, never returned. ``server/error_handlers.py`` writes them on the wire. Messages are fixed texts that
say what to do, without paths, object addresses or image data. This module imports nothing of the package.
"""

from enum import StrEnum

INTERNAL = "The server made a mistake and logged it. Give the x-request-id to the server's operator."


class ErrorCode(StrEnum):
    """The values of ``error.code`` on the wire, of ``code`` in the log and of ``reason`` in the metrics."""

    # The request
    INVALID_JSON = "invalid_json"
    UNKNOWN_PARAMETER = "unknown_parameter"
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    INVALID_SCHEMA = "invalid_schema"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    MAX_TOKENS_EXCEEDED = "max_tokens_exceeded"
    PREVIOUS_RESPONSE_NOT_FOUND = "previous_response_not_found"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    # Images
    INVALID_IMAGE = "invalid_image"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_URL_NOT_ALLOWED = "image_url_not_allowed"
    IMAGE_FETCH_FAILED = "image_fetch_failed"
    UNSUPPORTED_IMAGE_FORMAT = "unsupported_image_format"
    # Files
    FILE_NOT_FOUND = "file_not_found"
    STORAGE_LIMIT_EXCEEDED = "storage_limit_exceeded"
    STORAGE_FULL = "storage_full"
    # HTTP
    INVALID_HTTP = "invalid_http"
    INVALID_HOST = "invalid_host"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TOO_LARGE = "request_too_large"
    RECEIVE_TIMEOUT = "receive_timeout"
    UNSUPPORTED_CONTENT_ENCODING = "unsupported_content_encoding"
    # Keys, origins and rate limits
    INVALID_API_KEY = "invalid_api_key"
    KEY_NOT_ALLOWED = "key_not_allowed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    REQUEST_EXCEEDS_RATE_LIMIT = "request_exceeds_rate_limit"
    TOO_MANY_REQUESTS_AT_ONCE = "too_many_requests_at_once"
    TOO_MANY_BATCHES = "too_many_batches"
    # The server's load and state
    SERVER_BUSY = "server_busy"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    IMAGES_BUSY = "images_busy"
    MEMORY_FULL = "memory_full"
    REQUEST_TIMEOUT = "request_timeout"
    MODEL_NOT_READY = "model_not_ready"
    SERVER_STOPPING = "server_stopping"
    ENGINE_RESTARTING = "engine_restarting"
    # The server's faults
    ENGINE_FAILED = "engine_failed"
    ENGINE_STOPPED = "engine_stopped"
    BAD_GATEWAY = "bad_gateway"
    INTERNAL_ERROR = "internal_error"


class ApiError(Exception):
    """An error with its HTTP status and the fields of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: ErrorCode | None = None
    retry_after_seconds: float | None = None
    """When to try again; None if trying again does not help."""
    clients_retry = True
    """Whether openai's client may repeat the request by itself, if its status is one that it repeats."""

    def __init__(
        self, message: str, *, param: str | None = None, code: ErrorCode | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.status = status or self.status


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class BadImage(InvalidRequest):
    code = ErrorCode.INVALID_IMAGE

    def at(self, param: str) -> "BadImage":
        """A copy for another request: several requests may share the work on one image."""
        return BadImage(self.message, param=param, code=self.code)


class Unauthorized(InvalidRequest):
    status = 401
    code = ErrorCode.INVALID_API_KEY


class Forbidden(InvalidRequest):
    """The server refuses the host or the origin that the request names, or what its key asks for."""

    status = 403


class NotFound(InvalidRequest):
    status = 404
    code = ErrorCode.NOT_FOUND


class RequestTooLarge(InvalidRequest):
    status = 413
    code = ErrorCode.REQUEST_TOO_LARGE


class RateLimited(ApiError):
    """The caller has used up a limit; ``kind``, requests or tokens, is OpenAI's type of the error."""

    status = 429
    code = ErrorCode.RATE_LIMIT_EXCEEDED

    def __init__(self, message: str, *, kind: str, retry_after_seconds: float, code: ErrorCode | None = None) -> None:
        super().__init__(message, code=code)
        self.type = kind
        self.retry_after_seconds = retry_after_seconds


class BadHttp(InvalidRequest):
    """Not HTTP, or HTTP that two servers might read differently."""

    code = ErrorCode.INVALID_HTTP


class UnsupportedEncoding(InvalidRequest):
    status = 415
    code = ErrorCode.UNSUPPORTED_CONTENT_ENCODING


class StorageFull(ApiError):
    """The disk under --data-dir has no room."""

    status = 507
    code = ErrorCode.STORAGE_FULL
    clients_retry = False


class Unavailable(ApiError):
    """The request may succeed later."""

    status = 503
    retry_after_seconds = 5.0


class NotLoaded(Unavailable):
    """The model of a request cannot be loaded. Each new try is a whole load, so clients must not try by themselves."""

    code = ErrorCode.MODEL_NOT_READY
    clients_retry = False


class Busy(Unavailable):
    code = ErrorCode.SERVER_BUSY


class Draining(Unavailable):
    code = ErrorCode.SERVER_STOPPING
    retry_after_seconds = 1.0
    """Another replica, if there is one, takes the next connection; if there is none, no short wait helps."""


class EngineStopped(Unavailable):
    """The engine has died, and with it every request that it was computing."""

    code = ErrorCode.ENGINE_STOPPED


class EngineFailed(ApiError):
    """The engine failed at one answer; the others go on."""

    code = ErrorCode.ENGINE_FAILED


class BadGateway(ApiError):
    """A server behind the router sent something that is no answer."""

    status = 502
    code = ErrorCode.BAD_GATEWAY


class StartupError(Exception):
    """The server cannot start; the message is shown as it is, without a traceback."""

    exit_code = 1


class EngineLost(StartupError):
    """The engine is gone for good, and the server ends.

    What outlives the process is its exit code, by which an alert distinguishes this from a start that failed.
    """

    exit_code = 70
    """EX_SOFTWARE of sysexits.h."""
