"""The programs of ``docs/recipes.md``, each in a process and a fresh folder of its own, print what the page shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recipes import Recipe, read_recipes
from tests.support.serve import Server
from tools.client_tests import MODEL, python_environment

LONGEST_SECONDS = 120

pytestmark = pytest.mark.parametrize("server", [MODEL], indirect=True)


def interpreter(recipe: Recipe) -> Path:
    """LangChain is in the environment of other people's clients alone."""
    return python_environment("openai-3") / "bin" / "python" if "langchain" in recipe.program else Path(sys.executable)


def environment(recipe: Recipe, base_url: str) -> dict[str, str]:
    """What the page tells the reader to set, and nothing of the project's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_", "OPENAI_"))}
    path = f"{interpreter(recipe).parent}{os.pathsep}{own['PATH']}"
    return own | {"PATH": path, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}


@pytest.mark.parametrize("recipe", read_recipes(), ids=lambda recipe: recipe.file)
def test_the_program_prints_what_the_page_shows(server: Server, recipe: Recipe, tmp_path: Path) -> None:
    recipe.lay_out(tmp_path)
    for step in recipe.steps:
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=tmp_path,
            env=environment(recipe, server.base_url),
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
        )
        assert (done.stdout, done.stderr, done.returncode) == (step.output, "", 0), step.command
