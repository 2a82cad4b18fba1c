"""The state of the application and of requests is read and written through ``server/state.py`` only."""

import ast
from pathlib import Path

import pytest

import llava_api

SOURCE = Path(llava_api.__file__).parent
ACCESSOR = SOURCE / "server" / "state.py"


OWNERS = {"request", "app", "main", "root", "application"}


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def untyped_accesses(code: str) -> list[str]:
    """``request.state``, ``app.state``, ``scope["state"]`` and the like, each with its line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr == "state" and last_name(node.value) in OWNERS:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Constant) and node.value == "state":
            found.append(f"{node.lineno}: 'state'")
    return found


def test_only_one_file_knows_where_the_state_is() -> None:
    # In telemetry, which knows no scope, it is the name of a label.
    files = [path for path in SOURCE.rglob("*.py") if path != ACCESSOR and path.parent != SOURCE / "telemetry"]
    found = {str(path): accesses for path in files if (accesses := untyped_accesses(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "request.state.key_name",
        "getattr(request.state, 'key_name', '')",
        "self.root.state.services.close()",
        "request.app.state.metrics = 1",
        "scope['state']['request_id']",
        "scope.setdefault('state', {})",
    ],
)
def test_each_kind_of_access_is_seen(code: str) -> None:
    assert untyped_accesses(code)
