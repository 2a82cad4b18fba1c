"""The front end stands without its heavy packages."""

import subprocess
import sys

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
