"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, for the keys of ``--lora-key`` only."""

import asyncio
from functools import partial

from llava_api.errors import ErrorCode, Forbidden
from llava_api.protocol import lora as wire
from llava_api.protocol.wire import PlainText
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint
from llava_api.server.services import Services


async def load(context: Context, wanted: wire.LoadLoraRequest) -> PlainText:
    services = services_for_key(context)
    # It goes on if the caller leaves: the engine would hold an adapter that this server knows nothing of.
    await asyncio.shield(services.load_adapter(wanted.lora_name, wanted.lora_path, in_place=wanted.load_inplace))
    return PlainText(f"Success: LoRA adapter '{wanted.lora_name}' added successfully.")


async def unload(context: Context, wanted: wire.UnloadLoraRequest) -> PlainText:
    services_for_key(context).unload_adapter(wanted.lora_name)
    return PlainText(f"Success: LoRA adapter '{wanted.lora_name}' removed successfully.")


def services_for_key(context: Context) -> Services:
    """Raises Forbidden if the caller's key may not do this."""
    # A server without keys has no key's name.
    if context.key_name not in context.services.settings.lora_key or not context.key_name:
        raise Forbidden(
            "This API key may not load or unload adapters: use one that --lora-key names.",
            code=ErrorCode.KEY_NOT_ALLOWED,
        )
    return context.services


changing = partial(
    Endpoint,
    "POST",
    reply=PlainText,
    spends_tokens=False,
    access=lambda settings: "key" if settings.adapters_change else "off",
)
ENDPOINTS = (
    changing(
        "/v1/load_lora_adapter",
        prepare=load,
        operation_id="loadLoraAdapter",
        summary="Serve another LoRA adapter beside the model",
        request=wire.LoadLoraRequest,
        example={"lora_name": "birds", "lora_path": "birds"},
    ),
    changing(
        "/v1/unload_lora_adapter",
        prepare=unload,
        operation_id="unloadLoraAdapter",
        summary="Serve a LoRA adapter no longer",
        request=wire.UnloadLoraRequest,
        example={"lora_name": "birds"},
    ),
)
