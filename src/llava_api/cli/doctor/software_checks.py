"""Whether the heavy packages can be imported, and which GPUs they see.

They are imported in other processes, which a broken driver may stop or end at ``import torch``.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llava_api.cli import machine
from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.start_checks import GPU_SHARE
from llava_api.units import readable_size
from llava_api.versions import HOW_TO_INSTALL, VLLM, installed, supported

IMPORT_SECONDS = 25.0
GROUPS = (("torch", "torchvision", "transformers"), ("vllm.engine.arg_utils",))
"""Each group is imported by one process; the processes run at the same time."""
MAX_ERROR_LENGTH = 300
OLDEST_DRIVERS = {"12": 525, "13": 580}
"""CUDA's major version -> the major version of the oldest driver for Linux.

https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""
INSTALL = f"install it as make setup does, in an environment of its own: {HOW_TO_INSTALL}"
SCRIPT = """
import importlib, json, sys
for name in sys.argv[1:]:
    facts = {"name": name}
    print(json.dumps(facts), flush=True)
    try:
        found = importlib.import_module(name)
        facts["version"] = str(getattr(found, "__version__", ""))
        if name == "torch":
            facts["cuda"] = found.version.cuda
            if found.version.cuda is not None:
                facts["gpus"] = found.cuda.device_count()
    except BaseException as error:
        facts["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(facts), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Import:
    name: str
    version: str = ""
    error: str = ""
    """Why the import failed, if it did."""
    slow: bool = False
    cuda: str | None = None
    """For torch: the CUDA version that it is built for."""
    gpus: int = 0
    """For torch: the number of GPUs that it sees."""


def imports(groups: Sequence[Sequence[str]] = GROUPS, seconds: float = IMPORT_SECONDS) -> dict[str, Import]:
    with ThreadPoolExecutor(len(groups)) as pool:
        found = pool.map(lambda names: import_group(names, seconds), groups)
        return {one.name: one for group in found for one in group}


def import_group(names: Sequence[str], seconds: float) -> list[Import]:
    # -P: do not import a folder of the same name in the working directory.
    command = [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT, *names]
    end = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        output = done.stdout
        if done.returncode:
            said = done.stderr.strip().splitlines()
            end = f"the process ended with code {done.returncode}" + (f": {said[-1]}" if said else "")
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
    found: dict[str, dict[str, object]] = {}
    for line in output.splitlines():
        if line.startswith('{"name"'):
            facts = json.loads(line)
            found[facts["name"]] = facts
    return [imported(name, found.get(name, {}), end) for name in names]


def imported(name: str, facts: dict[str, object], end: str) -> Import:
    """``end``: how the process ended; empty if it had to be stopped."""
    if "error" in facts:
        return Import(name, error=" ".join(str(facts["error"]).split())[:MAX_ERROR_LENGTH])
    if "version" not in facts:
        return Import(name, error=end, slow=not end)
    cuda, gpus = facts.get("cuda"), facts.get("gpus")
    return Import(
        name, str(facts["version"]), cuda=None if cuda is None else str(cuda), gpus=gpus if isinstance(gpus, int) else 0
    )


def package(name: str, found: Import, *distributions: str) -> Finding:
    version = found.version or installed(*distributions) or ""
    if installed(*distributions) is None and not found.version:
        return fail(name, "not installed", INSTALL)
    if found.error:
        return fail(name, f"{version} does not import: {found.error}", "its parts do not match: " + INSTALL)
    if found.slow:
        return warn(
            name,
            f"{version} was not imported in {IMPORT_SECONDS:.0f} s",
            "run the doctor again: a cold disk is faster the second time, a driver that hangs is not",
        )
    return ok(name, version)


def packages(found: dict[str, Import]) -> list[Finding]:
    return [
        package("torch", found["torch"], "torch"),
        package("torchvision", found["torchvision"], "torchvision"),
        package("transformers", found["transformers"], "transformers"),
        vllm(found["vllm.engine.arg_utils"]),
    ]


def vllm(found: Import) -> Finding:
    finding = package("vllm", found, *VLLM)
    name = next((name for name in VLLM if installed(name)), VLLM[0])
    versions = supported(name)
    if finding.state == "ok" and not versions.contains(installed(name) or found.version, prereleases=True):
        return warn("vllm", f"{finding.found}: this llava-api supports {versions}", f"pip install '{name}{versions}'")
    return finding


def compiler(on_gpu: bool | None, include: Path | None = None) -> list[Finding]:
    """What Triton compiles with while the engine starts on a GPU."""
    if not on_gpu:
        return []
    found = next((name for name in (os.environ.get("CC", ""), "gcc", "clang") if name and shutil.which(name)), None)
    advice = (
        "install gcc and Python's headers (Debian: apt install gcc libc6-dev python3-dev): Triton compiles with them"
    )
    if found is None:
        return [fail("compiler", "there is no C compiler", advice)]
    headers = str(include or sysconfig.get_path("include"))
    command = [found, "-fsyntax-only", "-I", headers, "-x", "c", "-"]
    if subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=False).returncode:
        return [fail("compiler", f"{found} cannot compile with Python.h ({headers}) and libc's headers", advice)]
    return [ok("compiler", f"{found}, Python.h")]


def is_too_old(driver: str, cuda: str) -> bool:
    """Whether the driver is older than CUDA's major version needs."""
    least, major = OLDEST_DRIVERS.get(cuda.partition(".")[0], 0), driver.partition(".")[0]
    return major.isdecimal() and int(major) < least


def gpu(torch: Import, share: float = GPU_SHARE) -> Finding:
    """Compare the GPUs of the driver's tool with those of torch. ``share``: of a GPU's memory, for the engine."""
    try:
        cards = machine.nvidia_smi()
    except OSError as error:
        if torch.cuda is None:
            return ok("gpu", f"none ({error}); torch is a build for the CPU")
        return fail(
            "gpu",
            f"torch is built for CUDA {torch.cuda}, and {error}",
            "install NVIDIA's driver (in a container: its container toolkit, and --gpus all), or the CPU build of vLLM",
        )
    text = "; ".join(f"{card.name}, {readable_size(card.free)} free of {readable_size(card.total)}" for card in cards)
    text = f"{text}, driver {cards[0].driver}" if cards else "nvidia-smi lists none"
    if torch.cuda is None:
        if torch.version and cards:
            return warn("gpu", f"{text}; torch is a build for the CPU", "to use the GPU: make setup")
        return ok("gpu", text) if cards else fail("gpu", text, "see nvidia-smi")
    if cards and is_too_old(cards[0].driver, torch.cuda):
        least = OLDEST_DRIVERS[torch.cuda.partition(".")[0]]
        return fail("gpu", text, f"torch for CUDA {torch.cuda} needs driver {least} or newer: update the driver")
    if torch.gpus == 0:
        return fail(
            "gpu",
            f"{text}; torch for CUDA {torch.cuda} sees none",
            "the driver is older than that CUDA (update it), or CUDA_VISIBLE_DEVICES hides the GPUs",
        )
    if any(card.free < card.total * share for card in cards):
        advice = f"the engine takes {share:.0%} of it: end the other program, or lower --gpu-memory-utilization"
        return warn("gpu", text, advice)
    return ok("gpu", f"{text}; torch for CUDA {torch.cuda} sees {torch.gpus}")
