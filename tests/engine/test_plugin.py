"""vLLM loads our plugin in every program of the environment; it changes vLLM only in processes of our own engine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_api.engine.start_errors import VARIABLE, EngineStart, engine_start
from tests.engine.conftest import Running

PROGRAM = '''
"""Loads vLLM's plugins, in a child that multiprocessing has spawned, and in a child of that; prints what changed."""
import ctypes, json, logging, multiprocessing, sys, types

PR_GET_PDEATHSIG = 2

def attributes():
    """Every function and class attribute of vLLM's loaded modules -> its identity."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("vllm") or not isinstance(module, types.ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                found[f"{module_name}.{name}"] = id(value)
            elif isinstance(value, type) and value.__module__.startswith("vllm"):
                for inner, attribute in list(vars(value).items()):
                    if isinstance(attribute, types.FunctionType):
                        found[f"{module_name}.{name}.{inner}"] = id(attribute)
    return found

def look(queue, deeper):
    import vllm.engine.arg_utils, vllm.v1.engine.core
    from vllm import ModelRegistry
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.plugins import load_general_plugins
    from vllm.platforms import current_platform

    current_platform.is_cpu()
    # As vLLM's processes have one by then.
    logging.getLogger("vllm").addHandler(logging.NullHandler())
    before = attributes()
    load_general_plugins()
    after = attributes()
    signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(signal))
    queue.put({
        "seen": len(before),
        "changed": sorted({name.removeprefix("vllm.") for name in before if before[name] != after.get(name)}),
        "filters": [type(one).__name__ for handler in logging.getLogger("vllm").handlers for one in handler.filters],
        "death_signal": signal.value,
        "models": [name for name in ModelRegistry.get_supported_archs() if name.startswith("LlavaApi")],
    })
    if deeper:
        in_child(queue)

def in_child(queue, deeper=False):
    child = multiprocessing.get_context("spawn").Process(target=look, args=(queue, deeper))
    child.start()
    child.join()

if __name__ == "__main__":
    import os
    if os.environ.get("STARTS_AN_ENGINE"):
        from llava_api.engine.start_errors import engine_start
        started = engine_start()
        started.__enter__()
    queue = multiprocessing.get_context("spawn").Queue()
    in_child(queue, deeper=True)
    print(json.dumps([queue.get(timeout=60), queue.get(timeout=60)]))
    if os.environ.get("STARTS_AN_ENGINE"):
        started.__exit__(None, None, None)
'''
QUEUES_AND_WAITS = {
    "distributed.device_communicators.shm_broadcast.ShmRingBuffer.__init__",
    "distributed.device_communicators.shm_broadcast.SpinCondition.wait",
}
MODELS = ["LlavaApiForConditionalGeneration", "LlavaApiNextForConditionalGeneration"]


def looked_at(folder: Path, **variables: str) -> list[dict[str, Any]]:
    """What the plugin changed in a child of a program, and in a child of that child."""
    (folder / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    done = subprocess.run(
        [sys.executable, str(folder / "program.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("variable", [None, "1:/nowhere/errors"])
def test_somebody_elses_program_is_left_as_it_is(tmp_path: Path, variable: str | None) -> None:
    """Also with a variable that is left over from a start which is over."""
    for process in looked_at(tmp_path, **({} if variable is None else {VARIABLE: variable})):
        assert process["seen"] > 1000
        assert process["changed"] == []
        assert process["filters"] == []
        assert process["death_signal"] == 0
        assert sorted(process["models"]) == MODELS


def test_a_process_of_our_engine_naps_fits_its_queues_and_records_errors(tmp_path: Path) -> None:
    core, worker = looked_at(tmp_path, STARTS_AN_ENGINE="1")
    for process in (core, worker):
        assert {name for name in process["changed"] if "shm_broadcast" in name} == QUEUES_AND_WAITS
        assert process["filters"] == ["Recorder"]
        assert sorted(process["models"]) == MODELS
    # The signal follows the thread that started a process, and vLLM starts workers from threads that end.
    assert core["death_signal"] == 9
    assert worker["death_signal"] == 0


def test_a_start_is_known_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineStart.current() is None
    with engine_start() as start:
        assert EngineStart.current() == start
        left_over = os.environ[VARIABLE]
    for value in (left_over, "not a start", ""):
        monkeypatch.setenv(VARIABLE, value)
        assert EngineStart.current() is None


@pytest.mark.asyncio(loop_scope="session")
async def test_the_real_engines_processes_are_changed(running: Running) -> None:
    """A second plugin, loaded after ours, writes down what it finds."""
    found = {file.stem: json.loads(file.read_text()) for file in running.reports.iterdir()}
    assert found == {"EngineCore": [True, 9], "VllmWorker-0": [True, 0]}


RENAMED = """
import vllm.model_executor.models.llava_next as theirs

theirs.LlavaNextForConditionalGeneration.{name}_2 = theirs.LlavaNextForConditionalGeneration.{name}
del theirs.LlavaNextForConditionalGeneration.{name}
import llava_api.engine.vllm_models
"""


@pytest.mark.parametrize("name", ["_image_pixels_to_features", "_merge_image_patch_embeddings"])
def test_a_method_that_vllm_has_renamed_ends_the_start_with_its_name(name: str) -> None:
    with engine_start() as start:
        done = subprocess.run(
            [sys.executable, "-c", RENAMED.format(name=name)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 1
        # What the server says, whose own exception only has vLLM's words.
        cause = start.cause("Model architectures failed to be inspected. Please check the logs for more details.")
    assert cause.startswith(
        f"the installed vLLM's LlavaNextForConditionalGeneration has no method {name}, which llava-api overrides"
    )
