"""Whether the ports are free, and who can use the server."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.serve import check_exposure
from llava_api.errors import StartupError
from llava_api.limits.account import open_limiter
from llava_api.limits.keys import KeyRing
from llava_api.server.listening import listen, listen_tcp
from llava_api.server.tls import WARN_DAYS, open_certificates
from llava_api.settings import Settings
from llava_api.telemetry.tracing import Tracing, open_tracing
from llava_api.web_origins import is_loopback


def port(settings: Settings) -> Finding:
    place = settings.unix_socket or f"{settings.host} port {settings.port}"
    try:
        with listen(settings) as taken:
            # Two sockets can be bound to one address: only listen() fails for the second.
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
    """Whatever else the settings make a start open; the start would fail with the same messages."""
    if settings.metrics_port is not None:
        place = f"{settings.metrics_host} port {settings.metrics_port}"
        yield opening("metrics port", f"{place} is free", lambda: side_port(settings))
    if settings.tls_certificate_file or settings.tls_key_file:
        yield tls(settings)
    yield opening("limits", "the callers' limits can be read", lambda: open_limiter(settings))
    if settings.otlp_endpoint is not None:
        yield opening("traces", "the exporter can be set up", lambda: close(open_tracing(settings.otlp_endpoint)))


def tls(settings: Settings) -> Finding:
    try:
        certificates = open_certificates(settings)
    except StartupError as error:
        return fail("TLS", str(error), "")
    assert certificates is not None
    if certificates.days_left < WARN_DAYS:
        return warn("TLS", certificates.expiry, "renew it: the server takes the new one while it runs")
    return ok("TLS", f"certificate and key match; {certificates.expiry}")


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


def who_listens(number: int) -> str | None:
    """Name and number of the process that listens on a port; None if that cannot be found out."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == number:
                if connection.pid is None:
                    return "another user's program"
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None


def exposure(settings: Settings) -> Finding:
    try:
        keys = KeyRing(settings)
        check_exposure(settings, keys)
    except StartupError as error:
        return fail("keys", str(error), "llava-api keys new NAME makes a key and its line for --api-key-file")
    where = f"on {settings.host}" if is_loopback(settings.host) else f"to the network ({settings.host})"
    if keys.needed and not keys.value:
        return warn("keys", "keys are needed, and there are none", "no request is taken until --api-key-file has one")
    if keys.needed:
        return ok("keys", f"{len(keys.value)} API keys; open {where}")
    if is_loopback(settings.host):
        return ok("keys", f"none; open only {where}, to every program of this machine and to no web page")
    return warn("keys", f"none; open {where}: everybody who reaches it is answered", "set keys with --api-key-file")
