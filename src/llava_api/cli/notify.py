"""Messages to the process that started this one, in systemd's protocol: READY=1, STATUS=..., STOPPING=1."""

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Send ``message`` to the Unix socket that $NOTIFY_SOCKET names. Does nothing if there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A service must not fail because its manager does not listen.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A name that begins with @ is of Linux's abstract namespace.
        sender.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
