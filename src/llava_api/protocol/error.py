"""The body of every error, whatever the route."""

from llava_api.protocol.wire import Wire


class ErrorObject(Wire):
    message: str
    """What is wrong and what to do."""
    type: str
    """invalid_request_error or server_error."""
    param: str | None
    """The field that is to be mended, as messages[0].content[1].image_url."""
    code: str | None


class ErrorReply(Wire):
    error: ErrorObject
