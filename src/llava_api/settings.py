"""Every setting of the server: one field, one command-line flag, one ``LLAVA_*`` environment variable.

A flag wins over the environment, which wins over the default. The documentation's table of settings and the Helm
chart's schema are generated from these fields.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from llava_api.setting_types import (
    Dtype,
    Mark,
    Networks,
    Origins,
    PathPrefix,
    Ports,
    Proxies,
    Quantization,
    Texts,
    TlsFile,
)
from llava_api.vision.families import LayoutName

MOST_COUNTED = 10**15
"""The highest limit that can be set: higher ones would have no effect."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="LLAVA_", env_ignore_empty=True, extra="forbid", use_attribute_docstrings=True
    )

    # The server
    host: Annotated[str, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the server to the network."""
    port: Annotated[int, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Mark.NOT_IN_FINGERPRINT] = "info"
    """How much the server writes to standard error."""
    served_model_name: Annotated[Texts, Mark.MADE_BY_CHART] = []
    """Name under which the model is served; replies use the first. Default: the model as given. May be repeated."""

    api_key: Annotated[Texts, Mark.SECRET, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = []
    """API key that requests must present, as name=key; a file is safer. May be repeated."""
    api_key_file: Annotated[Texts, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = []
    """File of API keys, name=key or name=sha256:... on each line; read again when it changes. May be repeated."""
    api_key_dir: Annotated[Texts, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = []
    """Folder of API keys, as Kubernetes mounts a secret: each file holds the key of that name. May be repeated."""
    make_key: Annotated[bool, Mark.PUBLIC_SERVER] = False
    """Make an API key for this run if none is configured, and show it in the log; not with --allow-anonymous."""
    allow_anonymous: Annotated[bool, Mark.MADE_BY_CHART] = False
    """Serve the network without API keys; otherwise a server without keys listens on this machine only."""
    max_running_answers: int | None = Field(None, ge=1)
    """Answers generated at the same time; default: as many as the engine computes together (--max-num-seqs)."""
    max_waiting_requests: int = Field(512, ge=0)
    """Requests that wait for their turn, of all callers together; more get 503. Callers take turns."""
    queue_timeout_seconds: float = Field(120, gt=0)
    """Longest wait for a turn; then 503."""
    drain_timeout_seconds: Annotated[float, Mark.MADE_BY_CHART] = Field(30, ge=0)
    """How long open requests may go on after SIGTERM; then, or at a second SIGTERM, they end with an error."""
    max_choices: int = Field(16, ge=1)
    """Answers that one request may ask for: n, or n for each prompt of a text completion."""
    response_store_bytes: int = Field(0, ge=0)
    """Memory for responses of /v1/responses that previous_response_id can continue; 0 keeps none."""
    cors_allow_origins: Origins = []
    """Web origin whose pages may call this server, as https://chat.example.com or app://obsidian.md; *: any.

    http://localhost:* means every port, chrome-extension://* every extension. May be repeated."""
    allowed_hosts: Annotated[Texts, Mark.PUBLIC_SERVER] = []
    """Host header to accept without API keys, as chat.example.com or *.example.com; *: any.

    IP addresses, names without a dot, and .local, .internal, .svc and the like are always accepted. May be repeated."""
    accept_request_ids: bool = False
    """Use a request's own X-Request-Id in the answer, the log and the trace, instead of a new one.

    Only letters, digits and ._:/+=- of it are kept, up to 128."""
    docs: Literal["key", "open", "off"] = "key"
    """The OpenAPI document at /openapi.json and a page to try it at /docs.

    key: with an API key, if there are keys; open: without; off: not at all."""
    strict_fields: bool = False
    """Refuse unknown fields, fields without effect, and numbers written as texts, as OpenAI does.

    Otherwise such fields are ignored, and the header x-llava-ignored names them."""
    any_model: bool = False
    """Answer requests without a model, or for an unknown one, with the served model.

    Programs that only know names such as claude-sonnet-4-5 need it. An adapter's name still chooses the adapter."""
    ollama_api: bool = False
    """Answer Ollama's API too, at /api/chat, /api/generate, /api/tags, /api/show and others, and at /."""
    short_paths: bool = False
    """Answer /chat/completions, /completions and /responses without /v1 too."""

    # Requests: their time and memory
    request_timeout_seconds: float = Field(600, gt=0)
    """Longest time for one request, to the last byte of its answer; then 503, or an error event in a stream."""
    stream_head_seconds: float = Field(10, ge=0)
    """Longest wait for a stream's first chunk before its status 200 is sent; a later failure is an event in it."""
    stream_keep_alive_seconds: float = Field(15, gt=0)
    """A stream gets a comment after this long without a chunk, so that no proxy closes it."""
    max_inflight_bytes: int = Field(2_000_000_000, ge=1)
    """Memory for requests: bodies, fetched images, pixels; beyond it 503. One caller gets at most half.

    At least one request of the largest kind is always accepted."""

    # Limits for each caller
    requests_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Requests that a caller may send in a minute; then 429. Default: no limit.

    A caller is an API key, or a client address if there are no keys."""
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Tokens of prompts and answers that a caller may use in a minute. Default: no limit."""
    images_per_minute: int | None = Field(None, ge=0, le=MOST_COUNTED)
    """Images that a caller may send in a minute. Default: no limit."""
    max_requests_at_once: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Requests of a caller that may be open at the same time. Default: no limit."""
    max_tokens_per_request: int | None = Field(None, ge=1, le=MOST_COUNTED)
    """Longest answer that a request may ask for, in tokens, and the default for max_tokens. Default: no limit."""
    max_stored_bytes: int | None = Field(20_000_000_000, ge=0, le=MOST_COUNTED)
    """Bytes of the files that a caller may keep at /v1/files, outputs of batches included; then 403."""
    max_stored_files: int | None = Field(100_000, ge=0, le=MOST_COUNTED)
    """Number of those files."""
    max_open_batches: int | None = Field(100, ge=0, le=MOST_COUNTED)
    """Batches of a caller that have not ended; more get 429."""
    key_limits_file: Annotated[str | None, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = None
    """TOML file of other limits for single keys, a table for each key's name; read again when it changes."""
    rate_limit_redis_url: Annotated[str | None, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = None
    """Redis that counts for several servers together, as redis://HOST:6379; default: each server counts on its own."""
    isolate_caches: bool = False
    """Share no cached prompt or image between callers, so that timing does not reveal what another caller sent."""

    # Files that callers store
    data_dir: Annotated[str | None, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = None
    """Folder for files of /v1/files and batches of /v1/batches, on a local disk; default: neither is served.

    One server at a time has it."""
    min_free_disk_bytes: Annotated[int, Mark.NOT_IN_FINGERPRINT] = Field(1_000_000_000, ge=0)
    """Bytes of its disk that are kept free; files that would take them get 507."""
    max_file_bytes: int = Field(512_000_000, ge=1)
    """Bytes of one uploaded file; images also have --max-image-bytes."""
    file_lifetime_seconds: int = Field(2_592_000, ge=0)
    """When a file is deleted whose upload does not say it (expires_after); 0 keeps such files."""
    max_batch_requests: int = Field(50_000, ge=1)
    """Requests of one batch."""

    # Logs, metrics and traces
    log_format: Annotated[Literal["human", "json"], Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = "human"
    """Format of log lines: text for people, or one JSON object on each line."""
    log_prompts: Annotated[bool, Mark.NOT_IN_FINGERPRINT] = False
    """Write the text of prompts into the log, without images. Then everyone who can read the log can read them."""
    metrics: Annotated[Literal["key", "open", "off"], Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = "key"
    """Prometheus metrics at /metrics.

    key: with an API key, if there are keys; open: without; off: not at all."""
    metrics_port: Annotated[int | None, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = Field(
        None, ge=0, le=65535
    )
    """A second port with only /metrics and /health, without a key; 0 takes a free one."""
    metrics_host: Annotated[str, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = "127.0.0.1"
    """Address that the second port listens on."""
    otlp_endpoint: Annotated[str | None, Mark.NOT_IN_FINGERPRINT] = None
    """Collector that receives traces by OTLP over HTTP, as http://localhost:4318; needs llava-api[otel]."""

    # Connections
    unix_socket: Annotated[str | None, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER, Mark.MADE_BY_CHART] = None
    """Unix socket to listen on instead of host and port; replaces a file that no process listens on any more."""
    unix_socket_mode: Annotated[str, Mark.NOT_IN_FINGERPRINT, Mark.MADE_BY_CHART] = Field(
        "660", pattern="^0?[0-7]{3}$", examples=["600"]
    )
    """Permissions of the Unix socket, in octal."""
    tls_certificate_file: TlsFile = None
    """Certificate chain in PEM, for https; read again when it changes, without dropping connections."""
    tls_key_file: TlsFile = None
    """Key of the certificate in PEM, without a password."""
    tls_client_ca_file: TlsFile = None
    """Certificate authorities in PEM; each client, probes too, needs a certificate of one of them (mutual TLS)."""
    root_path: Annotated[PathPrefix, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER] = ""
    """Path under which a proxy publishes this server, as /llava; requests are answered with it and without it."""
    trusted_proxies: Annotated[Proxies, Mark.NOT_IN_FINGERPRINT] = []
    """Address or network of a proxy whose X-Forwarded-For and -Proto are believed; unix: clients of the Unix socket.

    Default: none. May be repeated."""
    max_connections: int = Field(2048, ge=1)
    """Open connections; beyond, the one that has been idle longest is closed; if none is idle, the new one gets 503."""
    max_header_bytes: int = Field(32_768, ge=1024)
    """Bytes of a request's first line and headers together; beyond it 431."""
    receive_timeout_seconds: float = Field(30, gt=0)
    """Longest time for a request's headers, from their first byte; then 408."""
    body_timeout_seconds: float = Field(120, gt=0)
    """Longest time for a request's body, from the end of its headers; then 408.

    An upload to /v1/files has this time for each --max-body-bytes of it."""
    reader_timeout_seconds: float = Field(30, gt=0)
    """A caller that leaves a full buffer of its answer unread for this long is cut off, and its answer stopped."""
    keep_alive_seconds: int = Field(75, ge=1)
    """How long an idle connection stays open; a little longer than load balancers keep theirs."""

    # Images: limits, each checked before its cost is paid
    max_images_per_request: Annotated[int, Mark.IMAGE_LIMIT] = Field(64, ge=0)
    """Images in one request."""
    max_image_bytes: Annotated[int, Mark.IMAGE_LIMIT] = Field(20_000_000, ge=1)
    """Bytes of one encoded image."""
    max_request_image_bytes: Annotated[int, Mark.IMAGE_LIMIT] = Field(60_000_000, ge=1)
    """Bytes of all encoded images of one request."""
    max_image_pixels: Annotated[int, Mark.IMAGE_LIMIT] = Field(64_000_000, ge=1)
    """Pixels of one image (width x height)."""
    max_image_side: Annotated[int, Mark.IMAGE_LIMIT] = Field(16_384, ge=1)
    """Pixels of the longer side of one image."""
    max_image_aspect_ratio: Annotated[int, Mark.IMAGE_LIMIT] = Field(200, ge=1)
    """Longer side of an image divided by its shorter side."""
    max_body_bytes: int = Field(100_000_000, ge=1)
    """Bytes of one request body."""
    image_threads: int | None = Field(None, ge=1)
    """Threads that decode and resize images; default: one for each CPU, up to 16."""
    max_waiting_images: int = Field(1024, ge=0)
    """Images that wait for a thread, of all callers together; more get 503. Callers take turns."""
    image_cache_bytes: int = Field(256_000_000, ge=0)
    """Memory for images that are ready for the model, so that one sent again is not decoded again."""

    # Images: where they may come from
    fetch_images: Annotated[bool, Mark.MODEL_INPUT] = True
    """Fetch images from http and https URLs."""
    allowed_media_domains: Annotated[Texts, Mark.MODEL_INPUT] = []
    """Host to fetch from, and no other; *.example.com for all below it. Default: any public host. May be repeated."""
    allowed_media_cidrs: Annotated[Networks, Mark.MODEL_INPUT] = []
    """Network to fetch from although it is not public, as 10.1.0.0/16. May be repeated."""
    allowed_media_ports: Annotated[Ports, Mark.MODEL_INPUT] = [80, 443]
    """Port to fetch from. May be repeated."""
    allowed_media_path: Annotated[Texts, Mark.MODEL_INPUT] = []
    """Folder whose files file:// URLs may name; default: none. May be repeated."""
    image_fetch_timeout_seconds: Annotated[float, Mark.MODEL_INPUT] = Field(10, gt=0)
    """Longest time for one fetch, redirects included."""
    max_image_fetches: int = Field(32, ge=1)
    """Fetches at the same time."""
    max_image_fetches_per_caller: int = Field(8, ge=1)
    """Fetches at the same time for one caller."""

    # Images: what the model gets
    jpeg_decode: Annotated[Literal["scaled", "exact"], Mark.MODEL_INPUT] = "scaled"
    """scaled: large JPEGs are decoded at a half, a quarter or an eighth, but at twice the needed size or more.

    Several times faster, a few of 255 levels off (docs/images.md); exact: bit for bit as LLaVA's own code."""
    image_mode: Annotated[LayoutName | None, Mark.CHECKPOINT_OVERRIDE] = None
    """How images are prepared for the model; default: as the checkpoint was trained.

    pad: padded to a square; square: cut to the middle; anyres: tiles; hf: as transformers does by default."""
    exif_orientation: Annotated[bool, Mark.MODEL_INPUT] = True
    """Turn images upright by their EXIF tag; LLaVA's own code does not."""
    flatten_transparency: Annotated[bool, Mark.MODEL_INPUT] = True
    """Show white under transparency; LLaVA's own code shows the colour that is stored there."""

    # The prompt
    prompt_family: Annotated[str | None, Mark.CHECKPOINT_OVERRIDE] = None
    """Prompt family to use instead of the detected one; hub: the checkpoint's own chat template."""

    # Checkpoints in LLaVA's original format
    cache_dir: Annotated[str, Mark.MADE_BY_CHART] = "~/.cache/llava-api"
    """Folder for converted and quantized checkpoints."""
    model_base: Annotated[str | None, Mark.CHECKPOINT] = None
    """Model that an original LoRA was trained on: a folder or a hub id."""
    vision_tower: Annotated[str | None, Mark.CHECKPOINT] = None
    """Vision tower of an original checkpoint, a folder or a hub id; default: its mm_vision_tower."""
    mmproj: Annotated[str | None, Mark.CHECKPOINT] = None
    """Vision half of a GGUF checkpoint, a file; default: the file beside it that has mmproj in its name."""

    # LoRA adapters
    lora: Annotated[Texts, Mark.LOADED_MODEL] = []
    """Adapter to serve beside the model, as name=folder or name=hub-id; requests choose it by name. May be repeated."""
    lora_dir: Annotated[Texts, Mark.LOADED_MODEL, Mark.PUBLIC_SERVER] = []
    """Folder from which adapters may be loaded while the server runs, by the keys of --lora-key. May be repeated."""
    lora_from_hub: Annotated[bool, Mark.LOADED_MODEL, Mark.PUBLIC_SERVER] = False
    """Let these keys load adapters from the hub too, by their ids."""
    lora_key: Annotated[Texts, Mark.NOT_IN_FINGERPRINT, Mark.PUBLIC_SERVER] = []
    """Name of an API key that may load and unload adapters. May be repeated."""
    max_adapters: Annotated[int | None, Mark.LOADED_MODEL] = Field(None, ge=1)
    """Adapters that are served at the same time; default: those of --lora, and with --lora-dir 4 more."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Highest rank of an adapter; default: the adapters' own, and with --lora-dir at least 16."""

    # The engine, in vLLM's names
    dtype: Dtype = "auto"
    """Type of weights and activations; auto: the checkpoint's own; on a CPU, one that it computes fast."""
    max_model_len: Annotated[int | None, Mark.MODEL_INPUT] = Field(None, ge=1)
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
    distributed_executor_backend: Annotated[Literal["mp", "ray"] | None, Mark.MADE_BY_CHART] = None
    """How workers are run; ray for more than one machine."""
    quantization: Quantization | None = None
    """Quantization method; default: what the checkpoint says."""
    load_8bit: Annotated[bool, Mark.LOADED_MODEL] = False
    """Quantize the text model to 8 bit (W8A8) when it is first served, into --cache-dir, and serve that."""
    load_4bit: Annotated[bool, Mark.LOADED_MODEL] = False
    """Quantize the text model to 4 bit (W4A16) when it is first served, unless it is quantized already."""
    enforce_eager: bool | None = None
    """Skip compilation and CUDA graphs; default: yes on the CPU, no on a GPU."""
    seed: int = 0
    """Seed of the engine."""
    revision: Annotated[str | None, Mark.CHECKPOINT, Mark.MADE_BY_CHART] = None
    """Branch, tag or commit of a hub checkpoint."""
    download_dir: Annotated[str | None, Mark.CHECKPOINT, Mark.MADE_BY_CHART] = None
    """Folder for downloaded checkpoints."""
    trust_remote_code: bool = False
    """Run code that a checkpoint brings along. Off, and best left off."""
    cpu_kvcache_space: int | None = Field(None, ge=1)
    """GiB of KV cache on a machine without a GPU; default: some full contexts, or as much as is free."""
    restart_engine: bool = False
    """Start the engine again if it dies; otherwise the server ends, so that its supervisor can start it again."""
    max_engine_restarts: int = Field(3, ge=1)
    """Restarts in a row before the server gives up and ends; ten calm minutes begin a new count."""
    engine_stall_seconds: float | None = Field(None, gt=0)
    """Longest time without a token while there is work; then the engine counts as dead."""
    check_memory: bool = True
    """Refuse to start if weights and KV cache are larger than the free memory."""
    engine_arg: Texts = []
    """Any other vLLM engine argument, as name=value; checked against the installed vLLM. May be repeated."""

    @property
    def adapters_change(self) -> bool:
        """Whether adapters may be loaded while the server runs."""
        return bool(self.lora_dir) or self.lora_from_hub


def marked(*marks: Mark) -> set[str]:
    """Names of the settings that have at least one of ``marks``."""
    return {name for name, field in Settings.model_fields.items() if any(mark in field.metadata for mark in marks)}


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"LLAVA_{name.upper()}"
