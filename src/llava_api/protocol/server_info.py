"""Replies about the server: its models, health and versions."""

from typing import Literal

from llava_api.protocol.wire import WireObject


class ModelCard(WireObject):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds when this server started."""
    owned_by: str = "llava-api"
    max_model_len: int
    """Most tokens of prompt and answer together. An extension, as vLLM has it."""
    parent: str | None = None
    """For a LoRA adapter, the model that it changes. An extension, as vLLM has it."""


class ModelList(WireObject):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(WireObject):
    status: Literal["live", "ready"]


class Version(WireObject):
    version: str
    """The version of llava-api."""
    vllm: str | None
    """null if it is not installed."""
    torch: str | None
    transformers: str | None
    python: str
