"""Whether the port is free, and who is let in."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.machine import PROC
from llava_api.cli.serve import check_exposure, is_loopback
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing, KeySources
from llava_api.server.listening import listen
from llava_api.settings import Settings

LISTENING = "0A"
"""A state in /proc/net/tcp."""


def port(settings: Settings) -> Finding:
    place = settings.unix_socket or f"{settings.host} port {settings.port}"
    try:
        with listen(settings) as taken:
            # Two sockets can be bound to one address; it shows when the second one listens.
            taken.listen(1)
            return ok("port", f"{place} is free")
    except StartupError as error:
        reason = str(error).rpartition(" (")[2].partition(")")[0]
    except OSError as error:
        reason = error.strerror or type(error).__name__
    holder = who_listens(settings.port)
    by = "" if holder is None else f", by {holder}"
    return fail("port", f"{place}: {reason}{by}", "end that program, or choose another with --port (and --host)")


def who_listens(number: int, proc: Path = PROC) -> str | None:
    """Name and number of the process that listens on a port; None where nobody can tell."""
    sockets = {inode for table in ("tcp", "tcp6") for inode in listening(proc / "net" / table, number)}
    for folder in sorted(proc.glob("[0-9]*")) if sockets else ():
        with suppress(OSError):
            if sockets & set(open_sockets(folder / "fd")):
                return f"{(folder / 'comm').read_text().strip()} (process {folder.name})"
    return "another user's program" if sockets else None


def open_sockets(descriptors: Path) -> Iterator[str]:
    """Inodes of a process's sockets; none where it is another user's, or gone."""
    with suppress(OSError):
        for link in descriptors.iterdir():
            with suppress(OSError):
                yield os.readlink(link).removeprefix("socket:[").removesuffix("]")


def listening(table: Path, number: int) -> list[str]:
    """Inodes of the sockets in /proc/net/tcp that listen on a port."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == number]


def exposure(settings: Settings) -> Finding:
    try:
        keys = KeyRing(KeySources(settings))
        check_exposure(settings, keys)
    except StartupError as error:
        return fail("keys", str(error), "llava-api keys new NAME makes a key and its line for --api-key-file")
    where = f"on {settings.host}" if is_loopback(settings.host) else f"to the network ({settings.host})"
    if keys.needed and not keys.keys:
        return warn("keys", "keys are wanted, and there are none", "nobody is answered until --api-key-file has one")
    if keys.needed:
        return ok("keys", f"{len(keys.keys)} API keys; open {where}")
    if is_loopback(settings.host):
        return ok("keys", f"none; open {where} alone, to every program of this machine and to no web page")
    return warn("keys", f"none; open {where}: anybody who reaches it is answered", "set keys with --api-key-file")
