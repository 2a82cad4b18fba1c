"""The batch program of ``docs/recipes.md`` at a server that cannot take all of it at once."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from llava_api.errors import Unavailable
from tests.support.metrics_page import read_page
from tests.support.recipes import PICTURES, read_recipes
from tests.support.running_server import serve_app
from tests.support.scripted_engine import ScriptedEngine

IMAGES_SENT = 10


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"max_running_answers": 1, "max_waiting_requests": 3}


async def test_it_comes_again_when_the_queue_is_full(
    app: FastAPI, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unavailable, "retry_after_seconds", 0.3)
    engine.pause_seconds = 0.02
    (recipe,) = (recipe for recipe in read_recipes() if recipe.file == "batch.py")
    (tmp_path / recipe.file).write_text(recipe.program)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(IMAGES_SENT):
        shutil.copy(PICTURES / "shapes" / "one.png", folder / f"{number}.png")
    async with serve_app(app) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            tmp_path / recipe.file,
            folder,
            env=os.environ | {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "none"},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0
    written = [json.loads(line) for line in output.splitlines()]
    assert written == [{"image": f"{number}.png", "caption": "A red circle."} for number in range(IMAGES_SENT)]
    page = read_page(app.state.services.metrics.page("")[0].decode())
    assert page.value("llava_api_rejections_total", reason="queue_full") > 0
