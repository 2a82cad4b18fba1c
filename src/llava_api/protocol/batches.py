"""``/v1/batches``: what creates a batch, a batch, and lists of them. ``batch/lines.py`` has the files' lines."""

from typing import Literal

from pydantic import Field

from llava_api.protocol.chat import Metadata
from llava_api.protocol.files import ExpiresAfter
from llava_api.protocol.response_reply import OutputTokensDetails
from llava_api.protocol.wire import Listed, Page, RequestObject, WireObject

BatchEndpoint = Literal["/v1/chat/completions", "/v1/responses", "/v1/completions"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
WINDOW_SECONDS = 24 * 3600
MAX_PAGE = 100


class BatchRequest(RequestObject):
    input_file_id: str
    """A file of purpose batch, whose lines are the requests."""
    endpoint: BatchEndpoint
    """What all its requests are for."""
    completion_window: Literal["24h"]
    """What is not done by then is not done at all."""
    metadata: Metadata | None = None
    """Up to 16 texts of the caller's own."""
    output_expires_after: ExpiresAfter | None = None
    """When the output and error files are deleted, from when they are complete; default: as other files."""


class BatchListQuery(RequestObject):
    after: str | None = None
    """The last id of the page before."""
    limit: int = Field(20, ge=1, le=MAX_PAGE)


class BatchError(WireObject):
    code: str
    line: int | None
    """Of the input file, from 1."""
    message: str
    param: str | None = None


class BatchErrors(WireObject):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(WireObject):
    total: int = 0
    completed: int = 0
    """Requests in the output file."""
    failed: int = 0
    """Requests in the error file."""


class BatchInputTokens(WireObject):
    cached_tokens: int = 0
    """Of them, those that came from the prefix cache."""


class BatchUsage(WireObject):
    input_tokens: int = 0
    input_tokens_details: BatchInputTokens = Field(default_factory=BatchInputTokens)
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int = 0


class Batch(Listed):
    """Times are Unix seconds, and null for what has not happened."""

    object: Literal["batch"] = "batch"
    endpoint: BatchEndpoint
    model: str | None = None
    """That of the first request."""
    errors: BatchErrors | None = None
    """What is wrong with the input file, if that is why the batch failed."""
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status = "validating"
    output_file_id: str | None = None
    """The answers, as soon as the batch has ended."""
    error_file_id: str | None = None
    """The requests that were refused, failed or not begun in time, as soon as the batch has ended."""
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = Field(default_factory=RequestCounts)
    usage: BatchUsage = Field(default_factory=BatchUsage)
    """Of the requests that have been completed so far."""
    metadata: Metadata | None = None


class BatchList(Page[Batch]):
    pass
