"""A server with a scripted engine, in a process of its own: for what is to be measured from outside.

``python -m tests.support.scripted_server FOLDER '{"setting": value}'`` writes its port to standard output.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from llava_api.chat.model import open_model
from llava_api.cli.allocator import keep_freed_memory
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.http_server import make_config
from llava_api.server.listening import listen
from llava_api.server.services import Services
from llava_api.settings import Settings
from tests.support.running_server import PromptServer
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint


async def serve(folder: Path, chosen: dict[str, Any], pause_seconds: float) -> None:
    settings = Settings.model_validate(chosen)
    model = open_model(str(write_checkpoint(folder, None)), ("tiny",), settings)
    engine = ScriptedEngine()
    engine.pause_seconds = pause_seconds
    services = Services(settings, model, engine)
    app = create_app(settings, KeyRing(settings), services)
    with listen(settings.model_copy(update={"port": 0})) as listener:
        listener.listen(2048)
        print(listener.getsockname()[1], flush=True)
        await PromptServer(make_config(app, settings, lifespan="off")).serve(sockets=[listener])
    await services.close()


@contextmanager
def scripted_server(folder: Path, pause_seconds: float = 0, **settings: Any) -> Iterator[tuple[int, int]]:
    """Its port and its process id."""
    command = [sys.executable, "-m", __name__, str(folder), json.dumps(settings), str(pause_seconds)]
    with Popen(command, stdout=PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    keep_freed_memory()
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])))
