"""``llava-api serve`` with a scripted engine, and ``llava-api fleet`` of such servers. Both need no torch.

``python -m tests.support.scripted_serve fleet FILE`` is the fleet. The name of a model says what its server does:
``broken`` cannot start, and ``slow`` loads until the file $SCRIPTED_FOLDER/go is there. Answers take some time, and
say the model's name.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from llava_api.chat.model import ServedModel, open_model
from llava_api.cli import main as command_line
from llava_api.cli import serve
from llava_api.cli.flags import demo_folder
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tests.support.scripted_engine import ScriptedEngine

PAUSE_SECONDS = 0.02


def scripted_model(name: str, settings: Settings) -> ServedModel:
    if name == "broken":
        raise StartupError("out of memory: serve a smaller checkpoint")
    return open_model(str(demo_folder() / "llava-tiny-1.5"), tuple(settings.served_model_name), settings)


async def scripted_engine(settings: Settings, loaded: Any) -> ScriptedEngine:
    name = settings.served_model_name[0]
    while name == "slow" and not (Path(os.environ["SCRIPTED_FOLDER"]) / "go").exists():
        await asyncio.sleep(0.02)
    engine = ScriptedEngine()
    engine.say(f" I am {name}", ".")
    engine.pause_seconds = PAUSE_SECONDS
    return engine


def main() -> None:
    serve.ready_model = scripted_model
    serve.start_engine = scripted_engine  # type: ignore[assignment]
    command_line.main()


def fleet() -> None:
    from llava_api.cli.fleet import backends, child

    async def no_judgement(fleet: "backends.Fleet") -> None:
        fleet.judged = True

    child.SERVER = "tests.support.scripted_serve"
    backends.judge = no_judgement
    command_line.main()


if __name__ == "__main__":
    fleet()
