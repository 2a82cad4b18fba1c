"""Requests in bulk, and ``llava-api`` that runs them at a scripted API."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from PIL import Image

from llava_api.cli.main import main

Line = dict[str, Any]


def write_lines(path: Path, lines: Iterable[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def request_line(custom_id: str, *, image: str | None = None, **fields: Any) -> Line:
    parts: list[Line] = [{"type": "text", "text": custom_id}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | fields


def start(base_url: str, arguments: Sequence[str | Path]) -> "Popen[str]":
    """``llava-api arguments`` in a process of its own, whose standard error can be read."""
    environment = os.environ | {"OPENAI_BASE_URL": base_url}
    return Popen([sys.executable, "-m", "llava_api", *arguments], env=environment, stderr=PIPE, text=True)


def run(base_url: str, *arguments: str | Path) -> tuple[int, str]:
    """``llava-api arguments`` in this process: the exit code and what it wrote to standard error."""
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--base-url", base_url])
    code = end.value.code
    return (1, f"{said.getvalue()}{code}\n") if isinstance(code, str) else (int(code or 0), said.getvalue())
