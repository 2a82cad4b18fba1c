"""The Grafana dashboard, and the names of the series that its expressions use."""

import json
import re
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[2] / "dashboards" / "llava-api.json"
SERIES = re.compile(r"\b(?:llava_api_|vllm:|process_|python_)[a-zA-Z0-9_:]+")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Rows are left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """The queries of panels and of variables."""
    queries = [variable["definition"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    return [target["expr"] for panel in panels() for target in panel["targets"]] + queries


def series_used() -> set[str]:
    return {name for expression in expressions() for name in SERIES.findall(expression)}
