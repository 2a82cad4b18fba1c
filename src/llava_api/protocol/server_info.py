"""Replies about the server: its models, health and versions."""

from typing import Literal

from llava_api.protocol.wire import WireObject


class ModelPermission(WireObject):
    """What old clients of OpenAI's API look for."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: int
    allow_create_engine: Literal[False] = False
    allow_sampling: Literal[True] = True
    allow_logprobs: Literal[True] = True
    allow_search_indices: Literal[False] = False
    allow_view: Literal[True] = True
    allow_fine_tuning: Literal[False] = False
    organization: str = "*"
    group: None = None
    is_blocking: Literal[False] = False


class ModelArchitecture(WireObject):
    """What goes in and out, as OpenRouter says it."""

    modality: Literal["text+image->text"] = "text+image->text"
    input_modalities: tuple[Literal["text"], Literal["image"]] = ("text", "image")
    output_modalities: tuple[Literal["text"]] = ("text",)


class ModelCard(WireObject):
    """The fields from ``root`` on are extensions."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds when this server started."""
    owned_by: str = "llava-api"
    root: str
    """The model's first name; for a LoRA adapter its own."""
    parent: str | None
    """For a LoRA adapter, the model that it changes."""
    max_model_len: int
    """Most tokens of prompt and answer together, as vLLM calls it."""
    context_length: int
    """The same, as OpenRouter calls it."""
    architecture: ModelArchitecture = ModelArchitecture()
    permission: list[ModelPermission]


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
