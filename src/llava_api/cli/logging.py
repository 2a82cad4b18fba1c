"""What goes to the terminal: our lines as they are, other people's only where something is wrong."""

import logging
import sys
import warnings


def set_up_logging(level: str) -> None:
    # Pillow warns of odd pictures; a caller's picture is nothing for the operator's terminal.
    warnings.filterwarnings("ignore", module="PIL")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if level != "debug":
        logging.getLogger("vllm").setLevel(logging.ERROR)
    ours = logging.getLogger("llava_api")
    ours.setLevel(level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("llava-api: %(message)s"))
    ours.addHandler(handler)
    ours.propagate = False
