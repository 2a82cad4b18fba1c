"""The real vLLM engine on the CPU, started once for the session, with the real app on a real port.

The checkpoint is the bundled demo without an end token, so that answers run on as long as a test needs.
"""

import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from safetensors.torch import load_file

from llava_api.chat.model import ServedModel, open_model
from llava_api.chat.prepare import Preparer
from llava_api.cli.flags import demo_folder
from llava_api.engine.vllm_start import start_engine
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.services import Services
from llava_api.settings import Settings
from llava_api.vision.families import PROJECTOR
from tests.support.running_server import RunningServer, serve_app
from tests.support.tiny_checkpoints import LORA_ALPHA, LORA_RANK, lora_matrices
from tests.unit.test_adapters import write_adapter

if TYPE_CHECKING:
    from llava_api.engine.vllm_engine import VllmEngine


@dataclass(frozen=True, slots=True)
class Running:
    engine: "VllmEngine"
    model: ServedModel
    services: Services
    server: RunningServer
    reports: Path
    """What ``SPY`` found: for each process of vLLM's a file with [whether vLLM is changed, death signal]."""

    @property
    def base_url(self) -> str:
        return self.server.base_url

    @property
    def preparer(self) -> Preparer:
        return self.services.preparer

    def unfinished_requests(self) -> int:
        return self.engine.llm.output_processor.get_num_unfinished_requests()


SPY = """
import ctypes, json, multiprocessing, os
from pathlib import Path

def register():
    if multiprocessing.parent_process() is None:
        return
    from vllm.distributed.device_communicators.shm_broadcast import ShmRingBuffer, SpinCondition
    signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG
    changed = hasattr(ShmRingBuffer, "fitted") and SpinCondition.wait.__module__.startswith("llava_api")
    report = Path(os.environ["SPY_REPORTS"], f"{multiprocessing.current_process().name}.json")
    report.write_text(json.dumps([changed, signal.value]))
"""
"""A plugin for vLLM that writes down how vLLM is changed in a process."""


def plugin_folder(folder: Path) -> Path:
    """A folder with ``SPY`` as an installed package, for sys.path."""
    (folder / "spy.dist-info").mkdir(parents=True)
    (folder / "spy.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: spy\nVersion: 1\n")
    (folder / "spy.dist-info" / "entry_points.txt").write_text("[vllm.general_plugins]\nspy = spy_plugin:register\n")
    (folder / "spy_plugin.py").write_text(SPY)
    return folder


def endless_copy(source: Path, target: Path) -> Path:
    """The checkpoint with a never generated token as its end token."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    pad = config["text_config"]["pad_token_id"]
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((target / name).read_text())
        settings["eos_token_id"] = pad
        if "text_config" in settings:
            settings["text_config"]["eos_token_id"] = pad
        (target / name).write_text(json.dumps(settings))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        tokens = json.loads((target / name).read_text())
        tokens["eos_token"] = "<pad>"
        (target / name).write_text(json.dumps(tokens))
    return target


def adapter_shelf(checkpoint: Path, shelf: Path) -> Path:
    """A folder of two adapters that change the checkpoint in different ways: one, and two with its own projector."""
    prefix = "language_model.model."
    weights = load_file(checkpoint / "model.safetensors")
    text = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    projector = {name: tensor * 1.1 for name, tensor in weights.items() if name.startswith(PROJECTOR)}
    for seed, (name, whole) in enumerate({"one": {}, "two": projector}.items(), start=1):
        (shelf / name).mkdir()
        halves = {f"{prefix}{layer}": half for layer, half in lora_matrices(text, seed).items()}
        tensors = {f"base_model.model.{key}": tensor for key, tensor in (halves | whole).items()}
        saved = [PROJECTOR] if whole else None
        write_adapter(shelf / name, tensors, r=LORA_RANK, lora_alpha=LORA_ALPHA, modules_to_save=saved)
    return shelf


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = endless_copy(demo_folder() / "llava-tiny-1.5", tmp_path_factory.mktemp("endless") / "model")
    adapters = adapter_shelf(folder, tmp_path_factory.mktemp("adapters"))
    settings = Settings(lora=[f"first={adapters / 'one'}"], lora_dir=[str(adapters)], lora_key=["admin"])
    model = replace(open_model(str(folder), ("endless",), settings), stop_token_ids=())
    reports = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patched:
        # Processes that are spawned begin with this process's sys.path; plugins are loaded in its order.
        patched.setattr(sys, "path", [*sys.path, str(plugin_folder(tmp_path_factory.mktemp("spy") / "site"))])
        patched.setenv("SPY_REPORTS", str(reports))
        engine = await start_engine(settings, model.to_load())
        await model.adapters.load_into(engine)
    services = Services(settings, model, engine)
    app = create_app(settings, KeyRing(settings), services)
    async with serve_app(app) as server:
        yield Running(engine, model, services, server, reports)
    await services.close()
    await engine.shutdown()
