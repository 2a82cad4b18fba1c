"""``GET /version``."""

from llava_api.protocol.wire import Wire


class Version(Wire):
    version: str
    """llava-api's own."""
    vllm: str | None
    """null where it is not installed."""
    torch: str | None
    transformers: str | None
    python: str
