"""What the application is handed at its start; it makes none of it itself."""

import time
from dataclasses import dataclass, field

from fastapi import Request

from llava_api.chat.model import ServedModel
from llava_api.chat.prepare import Preparer
from llava_api.engine.base import Engine
from llava_api.settings import Settings


@dataclass(slots=True)
class Services:
    settings: Settings
    model: ServedModel
    engine: Engine
    preparer: Preparer
    started: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds; the creation time of the served model in ``/v1/models``."""


def caller_of(request: Request) -> str:
    """Whose work is counted together: for now all that comes from one address."""
    return request.client.host if request.client is not None else ""
