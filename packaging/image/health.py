"""The image's HEALTHCHECK: exit code 0 where the server takes requests, 1 otherwise.

Standard library only, and Debian's Python without the server's environment: it runs every 30 seconds. It finds the
server by the same LLAVA_* variables; a port that is given as a flag it does not see.
"""

import http.client
import os
import socket
import ssl
import sys

TIMEOUT_SECONDS = 4
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connection() -> http.client.HTTPConnection:
    """To the metrics port where there is one, which never asks for a client's certificate."""

    def setting(name: str, default: str = "") -> str:
        return os.environ.get(f"LLAVA_{name}") or default

    if setting("METRICS_PORT"):
        host = setting("METRICS_HOST", "127.0.0.1")
        return http.client.HTTPConnection(ANY.get(host, host), int(setting("METRICS_PORT")), timeout=TIMEOUT_SECONDS)
    if setting("UNIX_SOCKET"):
        return UnixConnection(setting("UNIX_SOCKET"))
    host = setting("HOST", "127.0.0.1")
    address = (ANY.get(host, host), int(setting("PORT", "8000")))
    if setting("TLS_CERTIFICATE_FILE"):
        # The certificate names the server as others see it, not 127.0.0.1.
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection(*address, timeout=TIMEOUT_SECONDS, context=context)
    return http.client.HTTPConnection(*address, timeout=TIMEOUT_SECONDS)


def main() -> int:
    try:
        asking = connection()
        asking.request("GET", "/health/ready")
        answer = asking.getresponse()
        print(answer.status, answer.read(500).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"no answer: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
