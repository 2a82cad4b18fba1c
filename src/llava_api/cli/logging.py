"""What goes to the terminal: our lines, and other people's only where something is wrong."""

import logging
import sys
import warnings
from typing import Literal

from llava_api.telemetry.log_lines import HumanLines, JsonLines


def set_up_logging(level: str, log_format: Literal["human", "json"] = "human") -> None:
    # Pillow warns of odd pictures; a caller's picture is nothing for the operator's terminal.
    warnings.filterwarnings("ignore", module="PIL")
    everybody = logging.StreamHandler(sys.stderr)
    everybody.setFormatter(
        JsonLines() if log_format == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[everybody])
    if log_format == "json":
        logging.captureWarnings(True)
    if level != "debug":
        logging.getLogger("vllm").setLevel(logging.ERROR)
    ours = logging.getLogger("llava_api")
    ours.setLevel(level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else HumanLines())
    ours.addHandler(handler)
    ours.propagate = False
