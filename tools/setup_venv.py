"""Make ``.venv`` ready to serve (or, with ``--test``, to test): ``python3 tools/setup_venv.py``.

``--ui`` makes ``.venv-ui`` instead, for ``llava-api ui``: Gradio and the server need different versions of Pillow.

It uses the standard library only, since it runs before anything is installed. A run with nothing changed returns at
once, a run after an interrupted one starts the environment afresh. The Dockerfile uses it too (``--venv``, ``--extra``,
``--dependencies-only``).
"""

# Annotations stay text, so that a Python that is too old reaches the line that says so.
from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = "constraints/cpu.txt"
CUDA_CONSTRAINTS = "constraints/cuda.txt"
UI = "ui"
UI_CONSTRAINTS = "constraints/ui.txt"
OLDEST_DRIVER = 580
"""For CUDA 13, which the packages of CUDA_CONSTRAINTS are built for.

https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""
SHIM = "packaging/torchvision-schema-repair"
HEARTBEAT_SECONDS = 15
SHOWN_LINES = 15
UNDER_WAY = "under way"
NOT_IMPORTED = (
    "/site-packages/(.*/tests?/|transformers/models/(?!__init__|auto/|clip/|deepseek_v|encoder_decoder/|gemma/|gpt2/"
    "|llama/|llava|mistral/|pixtral/|qwen|siglip/|t5/|whisper/))"
)
"""A fifth of all code; what a LLaVA and vLLM import of transformers' models is excepted."""
NEWER_PIP = "pip>=25.3"
"""Debian 12's own takes three times as long for the same packages."""


class SetupError(Exception):
    """Something the user can act on; the message says how."""


def say(line: str) -> None:
    print(f"[setup] {line}", flush=True)


# Decisions


def has_nvidia_gpu() -> bool:
    """A driver without a card (or the reverse) also ships nvidia-smi: it has to run and to list a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def check_gpu_machine() -> None:
    """Look for what a start on the GPU would miss, before 10 GB are fetched. Raises SetupError."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    major = found.partition(".")[0]
    if not major.isdecimal():
        say(f"no NVIDIA driver answers here: the server will need driver {OLDEST_DRIVER} or newer")
    elif int(major) < OLDEST_DRIVER:
        raise SetupError(
            f"the NVIDIA driver {found} is too old for CUDA 13, {OLDEST_DRIVER} or newer is needed: update it, or "
            "install for the CPU with `python3 tools/setup_venv.py --device cpu`."
        )
    if not compiles_for_python():
        raise SetupError(
            "no C compiler can use Python's headers here, and Triton compiles with both when the server starts on a "
            "GPU: `apt-get install gcc libc6-dev python3-dev`, then run this again."
        )


def compiles_for_python() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    command = [compiler or "gcc", "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c", "-"]
    try:
        return subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True).returncode == 0
    except OSError:
        return False


def chosen_extras(device: str, test: bool, more: Sequence[str] = ()) -> list[str]:
    return [device, *(["test"] if test else []), *more]


def pinned_torch(constraints: str) -> str:
    """The ``torch==...`` line of the constraints. Raises SetupError."""
    for line in constraints.splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SetupError(f"{CONSTRAINTS} has no line torch==...; take the file from version control again.")


def requirements(root: Path, extras: list[str]) -> list[str]:
    """Dependencies of the project and its extras in pyproject.toml. Raises SetupError for an unknown extra."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise SetupError(f"pyproject.toml has no extra {unknown[0]}; it has {', '.join(sorted(optional))}.")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def constraints_for(extras: list[str]) -> str:
    if extras == [UI]:
        return UI_CONSTRAINTS
    return CUDA_CONSTRAINTS if "cuda" in extras else CONSTRAINTS


def pip_arguments(extras: list[str], torch_index: bool, instead: Sequence[str] = ()) -> list[str]:
    """Arguments of ``pip install``: the project in place with its extras, or the requirements ``instead``."""
    arguments = list(instead) or ["-e", f".[{','.join(extras)}]"]
    arguments += ["-c", constraints_for(extras)]
    if torch_index:
        arguments += ["--extra-index-url", TORCH_CPU_INDEX]
    return arguments


# The stamp, which says what an environment was made from


def inputs_hash(root: Path, extras: list[str]) -> str:
    """Changes with everything that decides what is installed."""
    digest = hashlib.sha256()
    pinned = [root / constraints_for(extras)]
    if extras != [UI]:
        pinned += sorted(path for path in (root / SHIM).iterdir() if path.is_file())
    for path in [root / "pyproject.toml", *pinned]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
        digest.update(content)
    digest.update(",".join(extras).encode())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, str]:
    try:
        stamp = json.loads((venv / "setup-stamp.json").read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, state: str) -> None:
    """The folder is part of it: scripts in a virtual environment hold its absolute path."""
    (venv / "setup-stamp.json").write_text(json.dumps({"state": state, "folder": str(venv)}) + "\n")


def is_ready(root: Path, venv: Path, device: str, test: bool) -> bool:
    """Whether it can serve, or test. An environment made for tests also serves."""
    with_tests, without = chosen_extras(device, True), chosen_extras(device, False)
    return is_made(root, venv, [with_tests] if test else [with_tests, without])


def is_made(root: Path, venv: Path, enough: list[list[str]]) -> bool:
    """Whether the environment was made from the present files with one of these lists of extras."""
    stamp = read_stamp(venv)
    return (
        stamp.get("folder") == str(venv)
        and stamp.get("state") in {inputs_hash(root, extras) for extras in enough}
        and (venv / "bin" / "python").exists()
    )


# Installing


def is_noise(line: str) -> bool:
    """pip may warn hundreds of times that it ignores a location, which helps nobody to read an error."""
    return not line.strip() or line.lstrip().startswith(("WARNING: Location", "[notice]"))


class Pip:
    def __init__(self, root: Path, venv: Path) -> None:
        self.root = root
        self.venv = venv
        self.python = str(venv / "bin" / "python")
        self.log = venv / "install.log"

    def run(self, *arguments: str, doing: str) -> tuple[bool, list[str]]:
        """(succeeded, pip's output without noise). It prints a line now and then while pip works."""
        logged = self.log.stat().st_size if self.log.exists() else 0
        command = [self.python, "-m", "pip", *arguments, "--log", str(self.log)]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        started = time.monotonic()
        with (
            tempfile.TemporaryFile("w+", errors="replace") as output,
            subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=output, stderr=subprocess.STDOUT
            ) as process,
        ):
            while process.poll() is None:
                try:
                    process.wait(HEARTBEAT_SECONDS)
                except subprocess.TimeoutExpired:
                    say(f"  ... still {doing} ({time.monotonic() - started:.0f} s)")
            output.seek(0)
            lines = [line.rstrip() for line in output if not is_noise(line)]
        if process.returncode:
            lines += [line for line in self.complaints(logged) if line not in lines]
        return process.returncode == 0, lines

    def complaints(self, offset: int) -> list[str]:
        """Warnings and errors in pip's log from ``offset`` on; only the log says why a build step failed."""
        if not self.log.exists():
            return []
        text = self.log.read_bytes()[offset:].decode(errors="replace")
        found = re.findall(r"^\S+ +((?:ERROR|WARNING): .*)$", text, re.MULTILINE)
        return [line[:200] for line in found if not is_noise(line) and "[present-rich]" not in line]

    def require(self, *arguments: str, doing: str) -> None:
        """Raises SetupError if pip fails."""
        succeeded, lines = self.run(*arguments, doing=doing)
        if not succeeded:
            for line in lines[-SHOWN_LINES:]:
                print(f"    {line}", file=sys.stderr)
            raise SetupError(
                f"pip failed while {doing}. Check the network (or pip's index settings) and the free disk "
                f"space, then run this again; pip's full log: {self.log}"
            )

    def renew(self) -> None:
        """Take a newer pip if there is one; the one that Python brings can install everything too."""
        self.run("install", "-q", "--no-compile", NEWER_PIP, doing="looking for a newer pip")

    def install(self, *arguments: str) -> None:
        doing = f"installing into {self.venv.name}"
        self.require("install", "-q", "--no-compile", "--progress-bar", "off", *arguments, doing=doing)


def check_machine() -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python {platform.python_version()} is too old, 3.11 or newer is needed: install one and name "
            "it, for example `make serve PYTHON=python3.11`."
        )
    if platform.system() != "Linux":
        raise SetupError(f"vLLM's packages are for Linux only, this is {platform.system()}: use a Linux VM.")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError("Python's venv module is missing: `apt-get install python3-venv`, then run this again.")


def make_venv(venv: Path) -> None:
    """Keeps an environment that works, also one that the user made; replaces one left half-way or moved."""
    stamp = read_stamp(venv)
    python = venv / "bin" / "python"
    usable = python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    if usable and stamp.get("state") != UNDER_WAY and stamp.get("folder", str(venv)) == str(venv):
        return
    if venv.exists():
        say(f"{venv.name} was left half-way or was moved: making it again")
    else:
        say(f"making {venv.name} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if made.returncode != 0:
        last = ((made.stdout + made.stderr).strip().splitlines() or ["no output"])[-1]
        raise SetupError(
            f"could not make {venv} ({last}): on Debian and Ubuntu `apt-get install python3-venv`, then run this again."
        )


def state_of(python: str, module: str) -> str:
    """works, broken or absent; imported in a process of its own, as a compiled library may crash it."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode == 0:
        return "works"
    return "absent" if f"No module named '{module}'" in done.stderr else "broken"


def repair(pip: Pip) -> None:
    """Make torch's companions importable, or remove those that LLaVA does not need."""
    say("checking that torch and its companions import")
    if state_of(pip.python, "torchvision") == "broken":
        say("torchvision does not import beside this torch: its operators are compiled for another build.")
        say(f"  LLaVA uses none of them; installing {SHIM}, which only lets the import through")
        pip.install("--no-deps", f"./{SHIM}")
        if state_of(pip.python, "torchvision") != "works":
            raise SetupError(
                f"torchvision still does not import: `{pip.python} -c 'import torchvision'` shows why. "
                "It has to be a build for the installed torch."
            )
    if state_of(pip.python, "torchaudio") == "broken":
        say("torchaudio does not import beside this torch, and would keep transformers from importing.")
        say("  LLaVA has no sound: removing torchaudio and torchcodec")
        pip.require("uninstall", "-q", "-y", "torchaudio", "torchcodec", doing="removing torchaudio")


def compile_all(pip: Pip) -> None:
    """Make the byte code on all cores; pip would make it on one, which takes half a minute longer."""
    # Its exit code only says that some file is no code for this Python: packages ship templates.
    command = [pip.python, "-m", "compileall", "-qq", "-j", "0", "-x", NOT_IMPORTED, str(pip.venv / "lib")]
    subprocess.run(command, capture_output=True, check=False)


def torch_index_needed(pip: Pip) -> bool:
    """Whether pip cannot find the CPU build of torch with the user's own settings (a mirror, a wheel folder).

    Asked first, because an index that cannot be reached costs minutes of retries for every single package.
    """
    torch = pinned_torch((pip.root / CONSTRAINTS).read_text())
    arguments = ["install", "--dry-run", "--no-deps", "--quiet", "--progress-bar", "off", torch]
    found, _ = pip.run(*arguments, doing=f"looking for {torch}")
    if not found:
        say(f"{torch} is not on the configured package index: also asking PyTorch's ({TORCH_CPU_INDEX})")
    return not found


def set_up(
    root: Path,
    device: str,
    test: bool = False,
    venv: Path | None = None,
    more: Sequence[str] = (),
    dependencies_only: bool = False,
) -> None:
    """``more`` names further extras. Raises SetupError."""
    started = time.monotonic()
    check_machine()
    if device == "auto":
        device = "cuda" if has_nvidia_gpu() else "cpu"
    venv = venv or root / ".venv"
    extras = chosen_extras(device, test, more)
    instead = requirements(root, extras) if dependencies_only else []
    # The stamp knows nothing of what only a Dockerfile asks for.
    if not (more or dependencies_only) and is_ready(root, venv, device, test):
        return
    if device == "cuda" and not dependencies_only:
        check_gpu_machine()
    size, minutes = ("10 GB", "5 to 15") if device == "cuda" else ("3.5 GB", "2 to 5")
    what = "the dependencies of llava-api" if dependencies_only else "llava-api"
    say(f"installing {what}[{','.join(extras)}] into {venv.name}: about {size} on disk, {minutes} minutes")
    make_venv(venv)
    write_stamp(venv, UNDER_WAY)
    pip = Pip(root, venv)
    pip.renew()
    torch_index = device == "cpu" and torch_index_needed(pip)
    pip.install(*pip_arguments(extras, torch_index, instead))
    compile_all(pip)
    repair(pip)
    write_stamp(venv, UNDER_WAY if dependencies_only else inputs_hash(root, extras))
    say(f"{venv.name} is ready after {time.monotonic() - started:.0f} s")


def set_up_ui(root: Path) -> None:
    """``.venv-ui``, which has no torch and no vLLM. Raises SetupError."""
    started = time.monotonic()
    check_machine()
    venv = root / ".venv-ui"
    if is_made(root, venv, [[UI]]):
        return
    say(f"installing llava-api[{UI}] into {venv.name} for the chat page: about 500 MB on disk, 1 minute")
    make_venv(venv)
    write_stamp(venv, UNDER_WAY)
    pip = Pip(root, venv)
    pip.renew()
    pip.install(*pip_arguments([UI], torch_index=False))
    compile_all(pip)
    write_stamp(venv, inputs_hash(root, [UI]))
    say(f"{venv.name} is ready after {time.monotonic() - started:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv ready to serve or to test.")
    parser.add_argument("--test", action="store_true", help="also install what the tests need")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="which build of vLLM to install (auto: cuda if nvidia-smi lists a GPU)",
    )
    parser.add_argument("--venv", type=Path, help="folder of the environment (default: .venv)")
    parser.add_argument("--extra", action="append", default=[], help="one more extra to install; may be repeated")
    parser.add_argument("--dependencies-only", action="store_true", help="install what the project needs, without it")
    parser.add_argument("--ui", action="store_true", help="make .venv-ui for the chat page, and nothing else")
    arguments = parser.parse_args()
    venv = arguments.venv.absolute() if arguments.venv else None
    try:
        if arguments.ui:
            set_up_ui(ROOT)
        else:
            set_up(ROOT, arguments.device, arguments.test, venv, arguments.extra, arguments.dependencies_only)
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[setup] interrupted; the next run starts the environment afresh", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
