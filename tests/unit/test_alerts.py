"""The alerts: each has its runbook, goes by series that a server has, and is raised by what it is for."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.exported import exported

FILE = Path("helm/llava-api/files/alerts.yaml")
RULES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["groups"][0]["rules"]
IN_THE_CHART = {"LlavaApiVolumeFull", "LlavaApiDownloadFailed", "LlavaApiRouterGone", "LlavaApiRouterErrors"}
"""Alerts of templates, from series that only a cluster has."""
HEADINGS = set(re.findall(r"^### (LlavaApi\w+)$", Path("docs/operations.md").read_text(encoding="utf-8"), re.MULTILINE))
SELECTED = re.compile(r"\b(llava_api_\w+|process_\w+)\{([^}]*)\}")


def test_each_alert_has_a_runbook() -> None:
    for rule in RULES:
        address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert address.endswith("/docs/operations.md")
        assert anchor == rule["alert"].lower()
    assert {rule["alert"] for rule in RULES} | IN_THE_CHART == HEADINGS


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_goes_by_series_labels_and_values_that_a_server_has(rule: dict[str, Any]) -> None:
    page = exported()
    for name, selector in SELECTED.findall(rule["expr"]):
        assert name in page.names()
        for label, operator, values in re.findall(r'(\w+)(=~?)"([^"]*)"', selector.replace('job="llava-api"', "")):
            wanted = set(values.split("|") if operator == "=~" else [values])
            assert wanted <= page.labels(name, label), (name, label)
    # Or nothing would be left of the selector in the chart.
    assert 'job="llava-api"' in rule["expr"]
    grouped = re.findall(r"llava_api_\w+\{", rule["expr"])
    if grouped and "fallback" not in rule["expr"]:
        assert re.search(r"by \([^)]*\bmodel\b", rule["expr"]), "not by model"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus's promtool")
def test_incidents_raise_their_alerts() -> None:
    ran = subprocess.run(["promtool", "test", "rules", "tests/alerts/scenarios.yaml"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_an_incident() -> None:
    tests = yaml.safe_load(Path("tests/alerts/scenarios.yaml").read_text(encoding="utf-8"))["tests"]
    raised = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert raised == {rule["alert"] for rule in RULES} | {"LlavaApiModelFailed"}
