"""What can be imported, and without what."""

import subprocess
import sys
from pathlib import Path

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "vllm", "transformers"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Blocker())
import llava_api.server.app, llava_api.cli.main
"""


def test_the_app_imports_without_torch_and_vllm() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_shipped_imports_what_there_is() -> None:
    """Nothing else calls most of these modules in a test run."""
    root = Path(__file__).parents[2]
    folders = ("benchmarks", "training")
    names = [f"{folder}.{module.stem}" for folder in folders for module in (root / folder).glob("[!_]*.py")]
    assert "training.train" in names
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
