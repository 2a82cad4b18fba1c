"""What stands on the terminal, line by line, as a process of its own writes it."""

import json
import subprocess
import sys

SCRIPT = """
import logging, sys, warnings
from llava_api.cli.terminal import set_up_logging
set_up_logging("info", sys.argv[1])
logging.getLogger("llava_api").info("ready. Base URL: %s", "http://x/v1")
logging.getLogger("llava_api.engine").debug("never seen")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger("somebody").info("never seen")
warnings.warn("old", UserWarning)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("llava_api.server").exception("unforeseen\\nerror")
"""


def terminal(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, log_format], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    lines = [json.loads(line) for line in terminal("json")]
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("info", "llava_api"),
        ("warning", "uvicorn.error"),
        ("warning", "py.warnings"),
        ("error", "llava_api.server"),
    ]
    assert lines[0]["message"] == "ready. Base URL: http://x/v1"
    assert lines[1]["message"] == "Invalid HTTP request received."
    assert lines[3]["message"] == "unforeseen\nerror"
    assert lines[3]["exception"].endswith("ZeroDivisionError: division by zero")
    for line in lines:
        date, _, time = line["time"].partition("T")
        assert (len(date), len(time), time[-1]) == (10, 13, "Z")


def test_people_read_plain_lines() -> None:
    lines = terminal("human")
    ours, time, said = lines[0].split(" ", 2)
    assert (ours, len(time), said) == ("llava-api:", 24, "ready. Base URL: http://x/v1")
    assert lines[1] == "WARNING uvicorn.error: Invalid HTTP request received."
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "never seen" not in "".join(lines)
