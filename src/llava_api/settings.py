"""Every setting of the server: one field, one command-line flag, one ``LLAVA_*`` environment variable.

The only place that reads the environment. A flag wins over the environment, which wins over the default. The
settings table in the documentation is generated from these fields.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def split_at_commas(value: object) -> object:
    """A text with commas -> its parts; a comma within JSON's brackets or quotes parts nothing."""
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
        # No JSON after all: a folder's name may hold such letters too.
        parts = value.split(",")
    return [part.strip() for part in parts if part.strip()]


MOST_COUNTED = 10**15
"""No limit is higher: more says the same as none."""
Texts = Annotated[list[str], NoDecode, BeforeValidator(split_at_commas)]
"""Several texts: a repeated flag, or one environment variable with commas between them."""


def network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text} is not a network such as 10.1.0.0/16") from error
    return text


Networks = Annotated[list[Annotated[str, AfterValidator(network)]], NoDecode, BeforeValidator(split_at_commas)]
Ports = Annotated[list[Annotated[int, Field(ge=1, le=65535)]], NoDecode, BeforeValidator(split_at_commas)]


def origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text):
        raise ValueError(f"{text} is not an origin such as https://chat.example.com, nor *")
    return text


Origins = Annotated[list[Annotated[str, AfterValidator(origin)]], NoDecode, BeforeValidator(split_at_commas)]


def proxy(text: str) -> str:
    return text if text == "unix" else str(ip_network(network(text), strict=False))


Proxies = Annotated[list[Annotated[str, AfterValidator(proxy)]], NoDecode, BeforeValidator(split_at_commas)]


def path_prefix(text: str) -> str:
    text = text.rstrip("/")
    if text and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", text):
        raise ValueError(f"{text} is not a path such as /llava")
    return text


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="LLAVA_", env_ignore_empty=True, extra="forbid", use_attribute_docstrings=True
    )

    # The server
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the server to the network."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the server writes to standard error."""
    served_model_name: Texts = []
    """Names under which the model is served, the first one first in replies; default: the model as given."""

    api_key: Texts = []
    """API key that a request must show, as name=key; better in a file. May be repeated."""
    api_key_file: Texts = []
    """File of API keys, name=key or name=sha256:... a line; read again when it changes. May be repeated."""
    api_key_dir: Texts = []
    """Folder of API keys, as Kubernetes mounts a secret: each file a key, its name the key's. May be repeated."""
    make_key: bool = False
    """Make an API key for this run where none is configured, and show it in the log; --allow-anonymous makes none."""
    allow_anonymous: bool = False
    """Answer the network without API keys; otherwise a server without keys listens on this machine only."""
    max_running_answers: int | None = Field(None, ge=1)
    """Answers that are made at once; default: as many as the engine computes together (--max-num-seqs)."""
    max_waiting_requests: int = Field(512, ge=0)
    """Requests that wait for their turn, of all callers together; then 503. Callers take turns."""
    queue_timeout_seconds: float = Field(120, gt=0)
    """Longest wait for a turn; then 503."""
    drain_timeout_seconds: float = Field(30, ge=0)
    """How long open requests may go on after SIGTERM; then, or at a second SIGTERM, they end with an error."""
    max_choices: int = Field(16, ge=1)
    """Answers that one request may ask for (n, and for text completions prompts times n)."""
    response_store_bytes: int = Field(0, ge=0)
    """Memory for responses of /v1/responses, which previous_response_id can go on from; 0 keeps none."""
    cors_allow_origins: Origins = []
    """Web origin whose pages may call this server, as https://chat.example.com; *: any. May be repeated."""
    allowed_hosts: Texts = []
    """Name in the Host header to answer to without API keys, as chat.example.com, *.example.com; *: any.

    IP addresses, names without a dot, and .local, .internal, .svc and the like need no mention. May be repeated."""
    docs: Literal["key", "open", "off"] = "key"
    """The OpenAPI document at /openapi.json and a page to try it at /docs.

    key: with an API key, where keys are set; open: without; off: not at all."""
    short_paths: bool = False
    """Answer /chat/completions, /completions and /responses without /v1 before them too."""

    # Requests: how long, and how much of them at once
    request_timeout_seconds: float = Field(600, gt=0)
    """Longest time for one request, to the last byte of its answer; then 503, or an error event in a stream."""
    stream_head_seconds: float = Field(10, ge=0)
    """Longest wait for a stream's first chunk before its status 200 is sent; a failure later is an event in it."""
    stream_keep_alive_seconds: float = Field(15, gt=0)
    """A stream in which nothing comes for so long gets a comment, so that no proxy takes it for dead."""
    max_inflight_bytes: int = Field(2_000_000_000, ge=1)
    """Memory for requests: bodies, fetched pictures, pixels; then 503. One caller gets up to half.

    At least one request of the largest kind is always taken."""

    # Keys: limits
    requests_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Requests that a caller may send in a minute; then 429. Default: no limit.

    A caller is an API key, or without keys a client address."""
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Tokens of prompts and answers that a caller may use in a minute. Default: no limit."""
    images_per_minute: int | None = Field(None, ge=0, le=MOST_COUNTED)
    """Pictures that a caller may send in a minute. Default: no limit."""
    max_requests_at_once: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Requests that a caller may have in the works at once. Default: no limit."""
    max_tokens_per_request: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Longest answer that a request may ask for, in tokens; one that asks for none ends there. Default: no limit."""
    key_limits_file: str | None = None
    """TOML file of other limits for single keys, a table for each key's name; read again when it changes."""
    rate_limit_redis_url: str | None = None
    """Redis that counts for several servers together, as redis://HOST:6379; default: each counts for itself."""
    isolate_caches: bool = False
    """Share no cached prompt or picture between callers, so that nobody learns by timing what another sent."""

    # What an operator sees
    log_format: Literal["human", "json"] = "human"
    """How log lines are written: for people, or as one JSON object a line."""
    log_prompts: bool = False
    """Write the text of prompts into the log, without pictures. A risk: whoever reads the log reads what people ask."""
    metrics: Literal["key", "open", "off"] = "key"
    """Prometheus metrics at /metrics.

    key: with an API key, where keys are set; open: without; off: not at all."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """A second port with /metrics and /health alone, without a key; 0 takes a free one."""
    metrics_host: str = "127.0.0.1"
    """Address that the second port listens on."""
    otlp_endpoint: str | None = None
    """Collector that traces are sent to by OTLP over HTTP, as http://localhost:4318; needs llava-api[otel]."""
    # Connections
    unix_socket: str | None = None
    """Unix socket to listen on instead of host and port; a file that nobody listens on any more is replaced."""
    unix_socket_mode: str = Field("660", pattern="^0?[0-7]{3}$")
    """Permissions of the Unix socket, in octal."""
    tls_certificate_file: str | None = None
    """Certificate chain in PEM, for https; read again when it changes, without dropping connections."""
    tls_key_file: str | None = None
    """Key of the certificate in PEM, without a password."""
    tls_client_ca_file: str | None = None
    """Authorities in PEM one of which must have signed every client's certificate (mutual TLS), probes' too."""
    root_path: Annotated[str, AfterValidator(path_prefix)] = ""
    """Path under which a proxy shows this server, as /llava; requests with it and without it are both answered."""
    trusted_proxies: Proxies = []
    """Address or network of a proxy whose X-Forwarded-For and -Proto are believed; unix: whoever opens the Unix socket.

    Default: nobody's. May be repeated."""
    max_connections: int = Field(2048, ge=1)
    """Open connections; beyond, the one that has been idle longest is closed, or where none is idle 503."""
    max_header_bytes: int = Field(32_768, ge=1024)
    """Bytes of a request's first line and headers together; then 431."""
    receive_timeout_seconds: float = Field(30, gt=0)
    """Longest time for a request's headers, from their first byte, and for a TLS handshake; then 408."""
    body_timeout_seconds: float = Field(120, gt=0)
    """Longest time for a request's body, from the end of its headers; then 408."""
    reader_timeout_seconds: float = Field(30, gt=0)
    """A caller that leaves a full buffer of its answer unread for so long is cut off, and its answer stopped."""
    keep_alive_seconds: int = Field(75, ge=1)
    """How long an idle connection stays open; a little longer than load balancers keep theirs."""

    # Pictures: limits, each checked before its cost is paid
    max_images_per_request: int = Field(16, ge=0)
    """Pictures in one request."""
    max_image_bytes: int = Field(20_000_000, ge=1)
    """Bytes of one encoded picture."""
    max_request_image_bytes: int = Field(60_000_000, ge=1)
    """Bytes of all encoded pictures of one request."""
    max_image_pixels: int = Field(64_000_000, ge=1)
    """Pixels of one picture (width x height)."""
    max_image_side: int = Field(16_384, ge=1)
    """Pixels of the longer side of one picture."""
    max_image_aspect_ratio: int = Field(200, ge=1)
    """How many times longer than wide a picture may be, or the reverse."""
    max_body_bytes: int = Field(100_000_000, ge=1)
    """Bytes of one request body."""
    image_threads: int | None = Field(None, ge=1)
    """Threads that decode and resize pictures; default: one for each CPU, up to 16."""
    max_waiting_images: int = Field(1024, ge=0)
    """Pictures that wait for a thread, of all callers together; then 503. Callers take turns."""
    image_cache_bytes: int = Field(256_000_000, ge=0)
    """Memory for pictures that are ready for the model, so that one sent again is not decoded again."""

    # Pictures: where they may come from
    fetch_images: bool = True
    """Fetch pictures from http and https URLs."""
    allowed_media_domains: Texts = []
    """The only hosts to fetch from, *.example.com for all below it; default: any public host. May be repeated."""
    allowed_media_cidrs: Networks = []
    """Network to fetch from though it is not public, as 10.1.0.0/16. May be repeated."""
    allowed_media_ports: Ports = [80, 443]
    """Port to fetch from. May be repeated."""
    allowed_media_path: Texts = []
    """Folder whose files file:// URLs may name; default: none. May be repeated."""
    image_fetch_timeout_seconds: float = Field(10, gt=0)
    """Longest time for one fetch, redirects included."""
    max_image_fetches: int = Field(32, ge=1)
    """Fetches at once."""
    max_image_fetches_per_caller: int = Field(8, ge=1)
    """Fetches at once for one caller."""

    # Pictures: what the model is shown
    jpeg_decode: Literal["scaled", "exact"] = "scaled"
    """scaled: large JPEGs are decoded at a half, a quarter or an eighth, never below twice the size that is needed.

    Several times faster, a few of 255 levels away (docs/images.md); exact: to the bit as LLaVA's own code."""
    image_mode: Literal["pad", "square", "anyres", "hf"] | None = None
    """How pictures are shown to the model; default: as the checkpoint was trained.

    pad: padded to a square; square: middle cut out; anyres: tiles; hf: what transformers does by default."""
    exif_orientation: bool = True
    """Turn pictures upright by their EXIF tag; LLaVA's own code does not."""
    flatten_transparency: bool = True
    """Show white under transparency; LLaVA's own code shows what lies under it."""

    # The prompt
    prompt_family: str | None = None
    """Prompt family to use instead of the detected one; hub: the checkpoint's own chat template."""

    # Checkpoints in LLaVA's original format
    cache_dir: str = "~/.cache/llava-api"
    """Folder for converted checkpoints."""
    model_base: str | None = None
    """Model that an original LoRA was trained on: a folder or a hub id."""
    vision_tower: str | None = None
    """Vision tower of an original checkpoint, a folder or a hub id; default: its mm_vision_tower."""

    # LoRA adapters
    lora: Texts = []
    """Adapter served beside the model, as name=folder; requests choose it by that name. May be repeated."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Highest rank of an adapter; default: what the adapters need."""

    # The engine, in vLLM's names
    dtype: str = "auto"
    """Type of weights and activations; auto: the checkpoint's own, float32 for float32 checkpoints."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt plus answer, in tokens; default: what the checkpoint allows."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Most requests that are computed together; default: vLLM's, on the CPU 16."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share each layer."""
    pipeline_parallel_size: int = Field(1, ge=1)
    """Stages that share the layers."""
    data_parallel_size: int = Field(1, ge=1)
    """Copies of the model."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """How workers are run; ray for more than one machine."""
    quantization: str | None = None
    """Quantization method; default: what the checkpoint says."""
    load_8bit: bool = False
    """Hold the weights in 8 bit, as LLaVA's own flag does: vLLM's online int8, unless the checkpoint is quantized."""
    load_4bit: bool = False
    """LLaVA's own flag; needs a checkpoint that is quantized to 4 bit already, and says so otherwise."""
    enforce_eager: bool | None = None
    """Skip compilation and CUDA graphs; default: yes on the CPU, no on a GPU."""
    seed: int = 0
    """Seed of the engine."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    download_dir: str | None = None
    """Folder for downloaded checkpoints."""
    trust_remote_code: bool = False
    """Run code that a checkpoint brings along. Off, and best left off."""
    cpu_kvcache_space: int = Field(1, ge=1)
    """GiB of KV cache on a machine without a GPU (vLLM's VLLM_CPU_KVCACHE_SPACE)."""
    restart_engine: bool = False
    """Start the engine again where it was lost; otherwise the server ends, and whoever runs it starts it again."""
    max_engine_restarts: int = Field(3, ge=1)
    """Restarts in a row before the server gives up and ends; ten calm minutes begin a new count."""
    engine_stall_seconds: float = Field(300, gt=0)
    """Longest time without a token while there is work; then the engine counts as lost."""
    check_memory: bool = True
    """Refuse to start where weights and KV cache are larger than the memory that is free."""
    engine_arg: Texts = []
    """Any other vLLM engine argument, as name=value; checked against the installed vLLM. May be repeated."""


SECRET = ("api_key",)
"""Settings whose value is never shown."""
PASSWORD = re.compile(r"(?<=//)\S*@")
"""Of a URL: user name and password, which may hold letters that belong in no URL, @ and / among them."""
SECRET_ARGUMENT = re.compile(r"password|secret|(token|key)(?![a-z])", re.IGNORECASE)
"""Found in the name of an engine argument whose value is never shown: hf_token, but not max_num_batched_tokens."""
LONGEST_SHOWN = 100


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{Settings.model_config['env_prefix']}{name.upper()}"


def variable_names() -> list[str]:
    return [variable_of(name) for name in Settings.model_fields]


def source_of(name: str, given: Mapping[str, Any]) -> str:
    """Where a setting's value comes from: ``flag``, the name of a variable, or ``default``. ``given``: the flags."""
    if name in given:
        return "flag"
    # An empty variable is one that is not there.
    found = next(
        (variable for variable, text in os.environ.items() if variable.upper() == variable_of(name) and text), None
    )
    return found or "default"


def shown(name: str, value: object) -> str:
    """A value for a terminal: no key, no password in a URL, no page of text."""
    if name in SECRET:
        count = len(value) if isinstance(value, list) else 1 if value else 0
        return f"({count} not shown)" if value else ""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    text = ",".join(shown_part(name, str(part)) for part in parts)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def shown_part(name: str, text: str) -> str:
    argument, equals, _ = text.partition("=")
    if name == "engine_arg" and equals and SECRET_ARGUMENT.search(argument):
        return f"{argument}=..."
    return PASSWORD.sub("...@", text)
