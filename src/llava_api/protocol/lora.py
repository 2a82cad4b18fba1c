"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, as vLLM's server has them."""

from typing import Annotated, ClassVar

from pydantic import Field

from llava_api.protocol.wire import RequestObject

NewName = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]


class LoadLoraRequest(RequestObject):
    ignored: ClassVar = {"is_3d_lora_weight": "It concerns mixtures of experts, and LLaVA has none: leave it out."}

    lora_name: NewName
    """The name that requests choose it by, of printable ASCII characters without spaces."""
    lora_path: str
    """A folder within --lora-dir on the server: its whole path, or the path below --lora-dir. Or, with
    --lora-from-hub, a hub id."""
    load_inplace: bool = False
    """Replace the adapter that has the name, if there is one. Answers that it has begun it also ends."""


class UnloadLoraRequest(RequestObject):
    ignored: ClassVar = {"lora_int_id": "The adapter is found by its name: leave it out."}

    lora_name: str
