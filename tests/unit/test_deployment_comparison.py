"""docs/deployment-comparison.md names tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PAGE = Path("docs/deployment-comparison.md")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ \|", line)
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_is_there_once() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 55))
    assert {row[5] for row in ROWS} <= {"Y", "P", "N"}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_we_have_names_its_test(row: list[str]) -> None:
    named = TEST.findall(row[6])
    assert named or row[5] != "Y"
    for file, name in named:
        assert name in functions_of(file), f"{file}::{name}"
