"""The socket to listen on. It is bound before the model is loaded, so that a port in use is reported at once."""

import logging
import os
import resource
import socket
import stat
from pathlib import Path

from llava_api.errors import StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES = 131_072
"""Size of the kernel's send buffer, which Linux doubles. By default it grows to megabytes for a slow reader."""
OTHER_FILES = 512
"""Open files for everything but connections: the engine, fetches, logs."""


def listen(settings: Settings) -> socket.socket:
    """Raises StartupError."""
    unix = settings.unix_socket is not None
    listener = listen_unix(settings) if unix else listen_tcp(settings.host, settings.port, "--port")
    # Connections inherit it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return listener


def listen_tcp(host: str, port: int, flag: str) -> socket.socket:
    """``flag`` is the flag for the port. Raises StartupError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        name = flag.replace("port", "host")
        raise StartupError(f"{name} {host} is neither an address nor a name that this machine knows") from error
    # Prefer IPv4 for a name with several addresses.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    # Nagle's algorithm costs 40 ms an answer. asyncio's own event loop switches it off only if a socket names TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {host} port {port} ({error.strerror}): is another server running "
            f"there? Choose another with {flag}"
        ) from error
    return listener


class UnixListener(socket.socket):
    """Deletes its file when it is closed, unless the file is another server's by then."""

    path: Path | None = None
    file: tuple[int, int] = (0, 0)

    def bind_to(self, path: Path, mode: int) -> None:
        # Until the permissions are set, only the owner may connect.
        before = os.umask(0o177)
        try:
            self.bind(str(path))
        finally:
            os.umask(before)
        path.chmod(mode)
        self.path, self.file = path, identity(path)

    def close(self) -> None:
        path, self.path = self.path, None
        if path is not None:
            try:
                if identity(path) == self.file:
                    path.unlink()
            except OSError:
                pass
        super().close()

    def __exit__(self, *_: object) -> None:
        # uvloop closes a server's socket without ``close``, which Python's own __exit__ would then leave out.
        self.close()


def identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def listen_unix(settings: Settings) -> socket.socket:
    path = Path(str(settings.unix_socket)).expanduser().absolute()
    remove_stale_socket(path)
    listener = UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind_to(path, int(settings.unix_socket_mode, 8))
    except OSError as error:
        listener.close()
        reason = error.strerror or "its path is too long"
        raise StartupError(
            f"cannot make the Unix socket {path} ({reason}); choose another with --unix-socket"
        ) from error
    return listener


def remove_stale_socket(path: Path) -> None:
    """Delete the file of a server that no longer runs. Raises StartupError if it is in use or is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartupError(f"--unix-socket {path}: there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            client.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise StartupError(
            f"--unix-socket {path} cannot be used: {error.strerror or 'its server does not answer'}"
        ) from error
    raise StartupError(f"another server listens on {path}; stop it, or choose another with --unix-socket")


def base_url(settings: Settings, listener: socket.socket) -> str:
    """The base URL for clients on this machine. Over a Unix socket, its host has no meaning."""
    scheme = "http" if settings.tls_certificate_file is None else "https"
    if settings.unix_socket is not None:
        return f"{scheme}://localhost/v1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{scheme}://{host}:{listener.getsockname()[1]}/v1"


def room_for_connections(wanted: int) -> int:
    """The number of connections, up to ``wanted``, for which the process may open files. Raises its limit if possible.

    A server that can open no more files can neither accept nor refuse connections, and its engine fails.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raised = needed if most == resource.RLIM_INFINITY else min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
        allowed = raised
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return wanted
    room = max(allowed - OTHER_FILES, allowed // 2)
    log.warning("room for %d connections, not %d: the system allows %d open files (ulimit -n)", room, wanted, allowed)
    return room
