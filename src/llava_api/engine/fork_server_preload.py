"""What the fork server imports before it forks (``fork_server``)."""

import importlib
import logging
import os
from multiprocessing import forkserver, resource_tracker

import setproctitle

from llava_api.engine.fork_server import SERVER_ID, start_processes_with_it
from llava_api.engine.processes import die_with

MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "llava_api.engine.vllm_models",
)

if SERVER_ID in os.environ:
    die_with(int(os.environ[SERVER_ID]))
    # A child asks the same fork server for children of its own, as the documentation of multiprocessing says; but
    # ensure_running would start another one, since it knows only of those that its own process has started.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]
    # It looks for the place of a process's title now. It would not find it after a child has set its variables.
    setproctitle.getproctitle()
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    for module in MODULES:
        importlib.import_module(module)
    start_processes_with_it()
