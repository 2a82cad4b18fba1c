"""The types of settings, with their checks, and the marks that other modules find settings by."""

import re
from enum import Enum, auto
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode


class Mark(Enum):
    """A property of a setting that other modules need to know; part of its annotation."""

    SECRET = auto()
    """Its value is never shown."""
    MADE_BY_CHART = auto()
    """The Helm chart sets it itself or does not support it, so the chart's values cannot."""
    NOT_IN_FINGERPRINT = auto()
    """No answer depends on it, and nothing derived from it may be published: addresses, keys, logs, metrics."""
    PUBLIC_SERVER = auto()
    """Concerns a server that others use. ``llava-api chat --serve`` ignores its variable."""
    LOADED_MODEL = auto()
    """May refuse to load a model. Commands without a flag for it load none, and ignore its variable."""

    # The flags of commands other than serve
    CHECKPOINT = auto()
    """Where a checkpoint comes from: convert, inspect, explain."""
    CHECKPOINT_OVERRIDE = auto()
    """Replaces what the checkpoint says of itself: inspect, explain."""
    IMAGE_LIMIT = auto()
    """A limit that the chat page checks before it sends an image: ui, explain."""
    MODEL_INPUT = auto()
    """Changes what the model gets for a request: explain."""


def split_at_commas(value: object) -> object:
    """Split a text at its commas, except those within JSON brackets or quotes."""
    if not isinstance(value, str):
        return value
    parts, depth, quoted, escaped = [""], 0, False, False
    for letter in value:
        if letter == "," and not depth and not quoted:
            parts.append("")
            continue
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = depth > 0 or parts[-1].endswith("=")
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        parts[-1] += letter
    if depth or quoted:
        # Not JSON: a folder's name may contain brackets and quotes too.
        parts = value.split(",")
    return [part.strip() for part in parts if part.strip()]


def network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text} is not a network such as 10.1.0.0/16") from error
    return text


ORIGIN = re.compile(
    r"https?://[^/\s*]+(:\*)?"
    # Of desktop programs and browser extensions, whose pages no web server can send.
    r"|(?!https?:)[a-z][a-z0-9+.-]{0,40}://([^/\s*]+|\*)"
)
"""``*`` is any port, or any host of a scheme other than http."""


def origin(text: str) -> str:
    if text != "*" and not ORIGIN.fullmatch(text):
        raise ValueError(f"{text} is not an origin such as https://chat.example.com, http://localhost:*, nor *")
    return text


def proxy(text: str) -> str:
    return text if text == "unix" else str(ip_network(network(text), strict=False))


def path_prefix(text: str) -> str:
    text = text.rstrip("/")
    if text and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", text):
        raise ValueError(f"{text} is not a path such as /llava")
    return text


# Lists are repeated flags, or one environment variable with commas.
SPLIT = BeforeValidator(split_at_commas)
Texts = Annotated[list[str], NoDecode, SPLIT]
Networks = Annotated[list[Annotated[str, AfterValidator(network)]], NoDecode, SPLIT, Field(examples=["10.1.0.0/16"])]
Ports = Annotated[list[Annotated[int, Field(ge=1, le=65535)]], NoDecode, SPLIT]
Origins = Annotated[list[Annotated[str, AfterValidator(origin)]], NoDecode, SPLIT, Field(examples=["*"])]
Proxies = Annotated[list[Annotated[str, AfterValidator(proxy)]], NoDecode, SPLIT, Field(examples=["10.1.0.0/16"])]
TlsFile = Annotated[str | None, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART]
Dtype = Annotated[
    Literal["auto", "float16", "half", "bfloat16", "float32", "float"],
    AfterValidator(lambda name: {"half": "float16", "float": "float32"}.get(name, name)),
]
Quantization = Literal[
    "awq",
    "auto_awq",
    "awq_marlin",
    "gptq",
    "auto_gptq",
    "gptq_marlin",
    "compressed-tensors",
    "fp8",
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "int8_per_channel_weight_only",
    "mxfp8",
    "mxfp4",
    "nvfp4_per_token",
    "online",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mxfp8",
    "modelopt_mixed",
    "humming",
    "quark",
    "torchao",
    "inc",
]
"""vLLM's methods, without those for single models and for mixtures of experts."""
PathPrefix = Annotated[str, AfterValidator(path_prefix), Field(examples=["/llava"])]
