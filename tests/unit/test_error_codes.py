"""Every error code can occur, and the metrics count each from the start."""

import re
from pathlib import Path

from llava_api.errors import ErrorCode
from llava_api.telemetry.metrics import Metrics

SOURCE = Path(__file__).parents[2] / "src" / "llava_api"


def test_every_code_is_raised_somewhere() -> None:
    raised = {
        found for path in SOURCE.rglob("*.py") for found in re.findall(r"code ?= ?ErrorCode\.(\w+)", path.read_text())
    }
    assert raised == {code.name for code in ErrorCode}


def test_every_code_has_a_place_in_the_metrics() -> None:
    page, _ = Metrics({"version": "0"}).page("")
    for code in [*ErrorCode, "invalid_request"]:
        assert f'llava_api_rejections_total{{reason="{code}"}} 0.0' in page.decode(), code
