"""Each module declares a group of endpoints. Add a new module to ``MODULES``."""

from llava_api.server.endpoint import Endpoint
from llava_api.server.routes import (
    anthropic,
    batches,
    chat,
    completions,
    explain,
    files,
    lora,
    ollama,
    probes,
    responses,
    server_info,
    tokenize,
)

MODULES = (
    chat,
    responses,
    completions,
    anthropic,
    ollama,
    explain,
    tokenize,
    files,
    batches,
    lora,
    server_info,
    probes,
)
ENDPOINTS: tuple[Endpoint, ...] = tuple(endpoint for module in MODULES for endpoint in module.ENDPOINTS)
"""All endpoints except those of ``docs.py``, which describes these."""
