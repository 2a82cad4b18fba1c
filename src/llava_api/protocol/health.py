"""``GET /health/live`` and ``/health/ready``."""

from typing import Literal

from llava_api.protocol.wire import Wire


class Health(Wire):
    status: Literal["live", "ready"]
