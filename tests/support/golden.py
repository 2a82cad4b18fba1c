"""Expected values made by LLaVA's original code; never regenerated from ours."""

import json
from pathlib import Path
from typing import Any


def cases(name: str) -> list[dict[str, Any]]:
    data = json.loads((Path(__file__).parents[1] / "golden" / f"{name}.json").read_text())
    found: list[dict[str, Any]] = data["cases"]
    return found
