"""The error codes that the metrics know are those that the code can raise."""

import ast
from collections.abc import Iterator
from pathlib import Path

from llava_api.telemetry.metrics import REASONS
from llava_api.telemetry.record import FAILURES

SOURCE = Path(__file__).parents[2] / "src" / "llava_api"


def codes_in(tree: ast.AST) -> Iterator[str]:
    """``code="..."`` in calls, and ``code = "..."`` of classes."""
    for node in ast.walk(tree):
        given = isinstance(node, ast.keyword) and node.arg == "code"
        assigned = isinstance(node, ast.Assign) and [getattr(it, "id", "") for it in node.targets] == ["code"]
        if (given or assigned) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):  # type: ignore[attr-defined]
            yield node.value.value  # type: ignore[attr-defined]


def test_every_code_has_a_place_in_the_metrics() -> None:
    found = {code for path in SOURCE.rglob("*.py") for code in codes_in(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"queue_full", "engine_failed", "internal_error", "image_fetch_failed"} <= found
    assert found <= REASONS
    assert FAILURES <= REASONS
