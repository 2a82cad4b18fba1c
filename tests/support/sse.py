"""A strict reader of OpenAI's event streams."""

import json
from typing import Any


def events(body: bytes) -> list[str]:
    """The data of every event; anything but ``data:`` lines and comments is an error."""
    found = []
    assert body.endswith(b"\n\n")
    for block in body.decode("utf-8").split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        assert len(lines) == 1, block
        assert lines[0].startswith("data: "), block
        found.append(lines[0].removeprefix("data: "))
    return found


def chunks(body: bytes) -> list[dict[str, Any]]:
    """The chunks before ``[DONE]``, which must come last and once."""
    data = events(body)
    assert data.count("[DONE]") == 1
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]
