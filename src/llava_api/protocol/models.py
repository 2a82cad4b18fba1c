"""``GET /v1/models``."""

from typing import Literal

from llava_api.protocol.wire import Wire


class ModelCard(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix seconds at which this server started."""
    owned_by: str = "llava-api"
    max_model_len: int
    """Longest prompt plus answer in tokens (vLLM's extension)."""
    parent: str | None = None
    """For a LoRA adapter, the model that it changes (vLLM's extension)."""


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]
