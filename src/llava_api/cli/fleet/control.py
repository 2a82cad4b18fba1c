"""The fleet's private Unix socket, with a line of JSON each way.

``llava-api fleet status|load|unload`` asks there, and the models' servers count there for rate limits.
"""

import asyncio
import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

from llava_api.cli.fleet.supervisor import Fleet, Member, State
from llava_api.errors import NotLoaded, StartupError, Unavailable
from llava_api.limits.windows import Windows
from llava_api.units import readable_size, readable_time

COMMANDS = ("status", "load", "unload")
SOCKET = "control.sock"
MOST_PATH_BYTES = 90
"""Of the folder: Linux allows 107 bytes for the path of a socket."""
COLUMNS = ("MODEL", "STATE", "FOR", "REQUESTS", "WAITING", "MEMORY", "GPUS")


def default_folder() -> Path:
    """The user's own folder for such files, else one in the folder for temporary files."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    own = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given)
    return Path(own) / "llava-api-fleet" if own else Path(tempfile.gettempdir()) / f"llava-api-fleet-{os.getuid()}"


def private_folder(folder: Path) -> Path:
    """Made if it is not there. Raises StartupError if others may open it, or if it is another user's."""
    try:
        folder = folder.expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StartupError(f"--folder {folder} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StartupError(f"--folder {folder} must be a folder that only you can open (chmod 700), or a new one")
    if len(os.fsencode(folder)) > MOST_PATH_BYTES:
        raise StartupError(f"--folder {folder}: its path is too long for Unix sockets; choose a shorter one")
    return folder


def row(member: Member, now: float) -> list[str]:
    memory = int(member.needs.get("memory", 0))
    return [
        member.model.name,
        member.state,
        readable_time(now - member.since) if member.since else "",
        str(member.leases),
        str(len(member.waiting)),
        readable_size(memory) if memory else "",
        ",".join(member.model.gpus),
    ]


@asynccontextmanager
async def control_socket(fleet: Fleet, windows: Windows, listener: socket.socket) -> AsyncIterator[None]:
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with closing(writer), suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                asked = json.loads(line)
                said = windows.count_for_server(*asked) if isinstance(asked, list) else await obey(fleet, asked)
                writer.write(json.dumps(said).encode() + b"\n")
        answering.discard(asyncio.current_task())

    server = await asyncio.start_unix_server(answer, sock=listener)
    try:
        yield
    finally:
        # Python 3.12 and later would wait for those who have connected and ask nothing.
        server.close()
        for task in filter(None, answering):
            task.cancel()
        await asyncio.gather(*filter(None, answering), return_exceptions=True)


async def obey(fleet: Fleet, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["command"] != "status":
        member = fleet.find(asked["model"])
        if member is None:
            names = ", ".join(member.model.name for member in fleet.members)
            return {"error": f"the fleet has no model {asked['model']}; it has {names}"}
        try:
            if asked["command"] == "unload":
                await fleet.unload(member)
            else:
                async with fleet.lease(member):
                    pass
        except NotLoaded:
            return {"error": f"the model {member.model.name} could not be loaded: {member.reason}"}
        except Unavailable as error:
            return {"error": error.message}
    failed = [member for member in fleet.members if member.state is State.FAILED]
    return {
        "rows": [row(member, fleet.now()) for member in fleet.members],
        "reasons": [f"{member.model.name}: {member.reason}" for member in failed],
    }


def command(folder: Path, name: str, model: str | None) -> None:
    """Ask the fleet that runs in ``folder``, and print its answer. Raises StartupError."""
    if (model is None) != (name == "status"):
        raise StartupError(f"llava-api fleet {name} {'MODEL: name the model' if model is None else 'takes no model'}")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, client.makefile("rw") as lines:
            client.connect(str(folder.expanduser().absolute() / SOCKET))
            lines.write(json.dumps({"command": name, "model": model}) + "\n")
            lines.flush()
            said = json.loads(lines.readline() or "{}")
    except OSError as error:
        raise StartupError(f"no fleet runs in {folder} ({error.strerror}); --folder names another folder") from error
    if "rows" not in said:
        raise StartupError(said.get("error", "the fleet ended before it answered"))
    rows = [COLUMNS, *said["rows"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for reason in said["reasons"]:
        print(reason, file=sys.stderr)
