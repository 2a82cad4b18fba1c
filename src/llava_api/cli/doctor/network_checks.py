"""Whether the port is free, and who is let in."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.machine import PROC
from llava_api.cli.serve import check_exposure
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing
from llava_api.limits.rate import open_limiter
from llava_api.server.listening import listen, listen_tcp
from llava_api.server.tls import open_certificates
from llava_api.settings import Settings
from llava_api.telemetry.tracing import Tracing, open_tracing
from llava_api.web_origins import is_loopback

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
        if settings.unix_socket is not None:
            return fail("port", str(error), "choose another place with --unix-socket")
        reason = str(error).rpartition(" (")[2].partition(")")[0]
    except OSError as error:
        reason = error.strerror or type(error).__name__
    holder = who_listens(settings.port)
    by = "" if holder is None else f", by {holder}"
    return fail("port", f"{place}: {reason}{by}", "end that program, or choose another with --port (and --host)")


def openings(settings: Settings) -> Iterator[Finding]:
    """What else a start opens, where it is asked for; a start would end with these words."""
    if settings.metrics_port is not None:
        place = f"{settings.metrics_host} port {settings.metrics_port}"
        yield opening("metrics port", f"{place} is free", lambda: side_port(settings))
    if settings.tls_certificate_file or settings.tls_key_file:
        yield opening("TLS", "certificate and key fit", lambda: open_certificates(settings))
    yield opening("limits", "limits of callers can be read", lambda: open_limiter(settings))
    if settings.otlp_endpoint is not None:
        yield opening("traces", "they would go out", lambda: close(open_tracing(settings.otlp_endpoint)))


def opening(check: str, found: str, open_it: Callable[[], object]) -> Finding:
    try:
        open_it()
    except StartupError as error:
        return fail(check, str(error), "")
    return ok(check, found)


def side_port(settings: Settings) -> None:
    assert settings.metrics_port is not None
    if settings.metrics_port and settings.metrics_port == settings.port and settings.unix_socket is None:
        raise StartupError("--metrics-port is --port's; choose another")
    listen_tcp(settings.metrics_host, settings.metrics_port, "--metrics-port").close()


def close(tracing: Tracing | None) -> None:
    if tracing is not None:
        tracing.close()


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
        keys = KeyRing(settings)
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
