"""``llava-api serve [MODEL]``: load a checkpoint and serve it until a signal ends the server."""

import argparse
import base64
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from llava_api.chat.model import ServedModel, describe_model, open_model, sources_of
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.checkpoints.size import count_parameters
from llava_api.cli.allocator import keep_freed_memory
from llava_api.cli.flags import DEMO, MODEL_HELP, add_flags, demo_folder, find_model, read_settings
from llava_api.cli.notify import notify
from llava_api.cli.start_checks import check_start, import_engine_ahead
from llava_api.cli.terminal import error_line, set_up_logging
from llava_api.engine import fork_server
from llava_api.engine.base import EngineProcesses
from llava_api.engine.processes import kill_children
from llava_api.engine.vllm_start import start_engine
from llava_api.errors import StartupError
from llava_api.limits.account import RateLimiter, open_limiter
from llava_api.limits.keys import KeyRing, new_key
from llava_api.server.listening import base_url, listen, listen_tcp
from llava_api.server.state import state_of
from llava_api.server.tls import Certificates, open_certificates
from llava_api.settings import Settings
from llava_api.storage.data_folder import DataFolder, open_data_folder
from llava_api.telemetry.tracing import Tracing, open_tracing
from llava_api.web_origins import is_loopback

DEMO_IMAGE = "red-circle.png"
MADE_KEY_NAME = "made-at-start"
log = logging.getLogger("llava_api")


@dataclass(frozen=True, slots=True)
class Front:
    """Opened before the model is loaded, so that a mistake in the settings is reported at once."""

    keys: KeyRing
    made_key: str | None
    """An API key that was made for this run. It is shown once, when the server is ready."""
    main: socket.socket
    certificates: Certificates | None
    side: socket.socket | None
    """Serves only metrics and health, without a key."""


@contextmanager
def opened_front(settings: Settings) -> Iterator[Front]:
    """Raises StartupError."""
    if settings.log_prompts:
        log.warning("--log-prompts: this log contains what people ask")
    keys = KeyRing(settings)
    made_key = key_for_this_run(settings, keys)
    if made_key is not None:
        keys = KeyRing(settings.model_copy(update={"api_key": [f"{MADE_KEY_NAME}={made_key}"]}))
    check_exposure(settings, keys)
    certificates = open_certificates(settings)
    # Closing it removes a Unix socket's file.
    with listen(settings) as listener:
        side = None
        if settings.metrics_port is not None:
            side = listen_tcp(settings.metrics_host, settings.metrics_port, "--metrics-port")
            log.info("metrics and health without a key: http://%s:%s/metrics", *side.getsockname()[:2])
        yield Front(keys, made_key, listener, certificates, side)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("serve", help="serve a checkpoint", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default=DEMO,
        metavar="MODEL",
        help=MODEL_HELP,
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    # Until uvicorn handles the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keep_freed_memory()
    # A text is tokenized in the thread that needs it. With threads of its own the library warns about every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settings = read_settings(chosen)
    set_up_logging(settings.log_level, settings.log_format)
    try:
        start(chosen.model, settings)
    except StartupError as error:
        if settings.log_format != "json":
            notify(f"STATUS={error}")
            raise
        report(error, settings)
        sys.exit(1)


def report(error: StartupError, settings: Settings) -> None:
    """Write why the server ends, in one line in the log's format."""
    notify(f"STATUS={error}")
    if settings.log_format == "json":
        log.critical("%s", error)
    else:
        print(error_line(error), file=sys.stderr, flush=True)


def start(wanted: str, settings: Settings) -> None:
    """Raises StartupError."""
    tracing = open_tracing(settings.otlp_endpoint)
    limiter = open_limiter(settings)
    with opened_front(settings) as front:
        check_lora_keys(settings, front.keys)
        data = open_data_folder(settings)
        limiter.table.warn_of_unknown_keys(front.keys.names())
        model = ready_model(wanted, settings)
        if settings.engine_stall_seconds is None and model.cpu_plan is not None:
            settings = settings.model_copy(update={"engine_stall_seconds": model.cpu_plan.step_seconds})
        serve_forever(model, settings, front, limiter, tracing, data)


def ready_model(wanted: str, settings: Settings) -> ServedModel:
    """The model in a form that the engine loads. Raises StartupError, also if it is too large for this machine."""
    names = tuple(settings.served_model_name) or (wanted,)
    model = open_model(find_model(wanted), names, settings)
    log.info("model %s: %s, %s format", names[0], model.checkpoint.vision, model.checkpoint.format)
    log.info("prompt family %s: %s", model.family.name, model.family_reason)
    log.info(
        "image mode %s, %d px tiles: %s", model.image_mode.name, model.image_mode.tile_pixels, model.image_mode_reason
    )
    if model.checkpoint.gguf is not None:
        log.info("GGUF files, read as %s", model.checkpoint.gguf.assumed)
    if model.checkpoint.format == "hub" and model.precision is None:
        import_engine_ahead(settings)
    # Before a conversion, which takes minutes and much room.
    plan = check_start(model, settings)
    if model.checkpoint.format != "hub" or model.precision is not None:
        converted = ready_checkpoint(model.checkpoint, sources_of(settings), settings.cache_dir, model.precision)
        as_it_is = settings.model_copy(update={"load_8bit": False, "load_4bit": False})
        model = describe_model(converted, names, as_it_is)
    for sentence in plan.sentences if plan is not None else ():
        log.info("%s", sentence)
    return replace(model, cpu_plan=plan, parameters=parameters_of(model) if settings.ollama_api else None)


def parameters_of(model: ServedModel) -> int | None:
    """None for a model that transformers does not know."""
    try:
        return count_parameters(model.checkpoint).total
    except StartupError:
        return None


def key_for_this_run(settings: Settings, keys: KeyRing) -> str | None:
    """A new key if --make-key is set and there is no other key, unless anonymous requests are allowed."""
    return None if keys.needed or settings.allow_anonymous or not settings.make_key else new_key()


def check_exposure(settings: Settings, keys: KeyRing) -> None:
    """Raises StartupError if others on the network could use the server without a key, unless a flag allows that."""
    if keys.needed or settings.make_key or settings.allow_anonymous:
        return
    if settings.unix_socket is not None or is_loopback(settings.host):
        return
    raise StartupError(
        f"--host {settings.host} opens the server to the network, and there are no API keys: name them with "
        "--api-key-file (llava-api keys new makes one), let --make-key make one for this run, or set --allow-anonymous "
        "to answer everybody"
    )


def check_lora_keys(settings: Settings, keys: KeyRing) -> None:
    """Raises StartupError if adapters could be loaded without a key, or by none."""
    if settings.adapters_change and not (keys.needed and settings.lora_key):
        raise StartupError(
            "--lora-dir and --lora-from-hub let callers load adapters, for which they need an API key: give the server "
            "keys (--api-key-file), and name the one for this with --lora-key"
        )
    unknown = sorted(set(settings.lora_key) - set(keys.names()))
    if unknown:
        log.warning("--lora-key names unknown keys: %s", ", ".join(unknown))


def serve_forever(
    model: ServedModel,
    settings: Settings,
    front: Front,
    limiter: RateLimiter,
    tracing: Tracing | None,
    data: DataFolder | None,
) -> None:
    from llava_api.server.app import create_app
    from llava_api.server.http_server import DrainingServer, limit_connections, make_config
    from llava_api.server.lifecycle import Lifecycle
    from llava_api.server.lifespan import make_lifespan

    async def load() -> EngineProcesses:
        engine = await start_engine(settings, model.to_load())
        try:
            await model.adapters.load_into(engine)
        except StartupError:
            await engine.shutdown()
            raise
        return engine

    def end(exit_code: int = 0) -> NoReturn:
        # Removes a Unix socket's file.
        front.main.close()
        end_at_once(exit_code)

    lifecycle = Lifecycle(
        settings.drain_timeout_seconds,
        on_ready=lambda: announce(model.names[0], settings, front),
        abandon_load=end,
    )
    lifespan = make_lifespan(
        model, settings, front.keys, limiter, lifecycle, load, front.side, front.certificates, data
    )
    app = create_app(settings, front.keys, lifespan=lifespan, lifecycle=lifecycle, tracing=tracing)
    metrics, connection_limit = state_of(app).metrics, limit_connections(settings)
    metrics.connections.set_function(lambda: len(connection_limit.open))
    config = make_config(
        app,
        settings,
        certificates=front.certificates,
        count_refusal=metrics.reject,
        connection_limit=connection_limit,
    )
    server = DrainingServer(config, lifecycle, on_signal=lambda: notify("STOPPING=1"))
    server.run(sockets=[front.main])
    if lifecycle.failure is not None:
        report(lifecycle.failure, settings)
        end(lifecycle.failure.exit_code)
    end(0 if server.started else 1)


def end_at_once(exit_code: int = 0) -> NoReturn:
    """End the process even during a load, which is a thread inside vLLM that nothing can stop.

    A normal exit would have no advantage: torch and vLLM take a second for it and print a page of warnings.
    """
    kill_children()
    fork_server.remove_folder()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code)


def announce(name: str, settings: Settings, front: Front) -> None:
    """Log the base URL and a curl command that works as it is, with the model ``name`` and a small image in it."""
    url, keys, made_key = base_url(settings, front.main), front.keys, front.made_key
    option = "" if settings.unix_socket is None else f"--unix-socket {settings.unix_socket} "
    notify("READY=1")
    log.info("ready. Base URL: %s%s", url, f" (on the Unix socket {settings.unix_socket})" if option else "")
    if made_key is not None:
        log.warning(
            "no API key is configured: this one was made for this run, and anybody who reads this log can use "
            "it. --api-key-file takes your own keys.\n\n%s\n",
            made_key,
        )
    elif keys.needed:
        log.info("API keys: %s", ", ".join(keys.names()) or "none yet, so every request is refused")
    shown_key = made_key or ("YOUR_KEY" if keys.needed else None)
    log.info("try it, in another terminal:\n\n%s\n", curl_line(name, option + url, shown_key))


def curl_line(name: str, base_url: str, shown_key: str | None) -> str:
    body = (
        f'{{"model": "{name}", "messages": [{{"role": "user", "content": ['
        f'{{"type": "text", "text": "What is in this image?"}}, '
        f'{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{demo_image()}"}}}}]}}]}}'
    )
    key = f" -H 'Authorization: Bearer {shown_key}'" if shown_key else ""
    return f"curl -s {base_url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"


def demo_image() -> str:
    """The bundled image of a red circle, in base64."""
    return base64.b64encode((demo_folder() / DEMO_IMAGE).read_bytes()).decode()
