"""The tables of docs/api.md agree with the code, and have every field of the openai client's requests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
REQUESTS = {
    "ChatCompletionRequest": chat_create_params.CompletionCreateParamsBase,
    "CompletionRequest": completion_create_params.CompletionCreateParamsBase,
    "ResponseRequest": response_create_params.ResponseCreateParamsBase,
}


def rows_of(model: str) -> dict[str, str]:
    """Field -> supported, accepted, extension or refused."""
    table = PAGE.split(f"\n#### {model}\n")[1].split("\n#### ")[0]
    return dict(re.findall(r"^\| \**`(\w+)`\** \| (\w+) \|", table, re.MULTILINE))


def test_the_tables_are_up_to_date() -> None:
    command = [sys.executable, "-m", "tools.api_tables", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("model", REQUESTS)
def test_every_field_of_the_openai_client_has_a_row(model: str) -> None:
    known = {*REQUESTS[model].__annotations__, "stream"}
    assert known - rows_of(model).keys() == set()


def test_extensions_are_marked_as_such() -> None:
    for model, params in REQUESTS.items():
        theirs = {*params.__annotations__, "stream"}
        ours = {field for field, status in rows_of(model).items() if status in ("supported", "accepted")}
        assert ours <= theirs, model


def test_every_link_has_a_target() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
