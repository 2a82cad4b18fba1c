"""https: certificates that are read again when they change, and connections that shake hands within a time.

The handshake is made here and not by the listening socket: so a connection is counted before anything is computed for
it, and each new one gets the certificates of now.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_api.errors import StartupError
from llava_api.server.connections import Connections
from llava_api.settings import Settings

if TYPE_CHECKING:
    from uvicorn.server import ServerState

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks at the files; each is made for a new connection."""
FAREWELL_SECONDS = 5.0
"""For the end of the encryption, when a connection is closed."""

LOCKED = "the key has a password, which is not supported; take it off with: openssl pkey -in KEY -out NEW"


class Certificates:
    """Raises StartupError where they cannot be used at the start."""

    def __init__(self, certificate_file: str, key_file: str, client_ca_file: str | None) -> None:
        self.certificate_file = Path(certificate_file).expanduser()
        self.key_file = Path(key_file).expanduser()
        self.client_ca_file = None if client_ca_file is None else Path(client_ca_file).expanduser()
        self.contents = self.read()
        self.context = self.load()
        self.looked = time.monotonic()
        self.complaint = ""
        """About the files as they are now: it is told once, and not with each look."""

    def read(self) -> list[bytes]:
        files = [self.certificate_file, self.key_file, self.client_ca_file]
        try:
            return [file.read_bytes() for file in files if file is not None]
        except OSError as error:
            raise StartupError(f"TLS: {error.filename} cannot be read: {error.strerror}") from error

    def load(self) -> ssl.SSLContext:
        """A context of its own each time: where a new pair is broken, the one in use is not harmed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        asked = []

        def no_password() -> str:
            # Left to itself, OpenSSL would ask for one at the terminal.
            asked.append(True)
            return ""

        try:
            context.load_cert_chain(self.certificate_file, self.key_file, no_password)
        except (ssl.SSLError, OSError) as error:
            reason = LOCKED if asked else reason_of(error)
            raise StartupError(f"TLS: {self.certificate_file} and {self.key_file} cannot be used: {reason}") from error
        if self.client_ca_file is not None:
            try:
                context.load_verify_locations(self.client_ca_file)
            except (ssl.SSLError, OSError) as error:
                raise StartupError(f"TLS: {self.client_ca_file} holds no certificates in PEM") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def current(self) -> ssl.SSLContext:
        now = time.monotonic()
        if now - self.looked > LOOK_SECONDS:
            self.looked = now
            await asyncio.to_thread(self.refresh)
        return self.context

    def refresh(self) -> None:
        """Read them again if they have changed. Where that fails, those of before stay, and the log says why."""
        try:
            contents = self.read()
            if contents == self.contents:
                self.complaint = ""
                return
            self.context = self.load()
        except StartupError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                log.error("the certificate stays as it was: %s", error)
            return
        # Not before: where they were half written just now, they are to be loaded at the next look.
        self.contents, self.complaint = contents, ""
        log.info("TLS certificate read again")


def reason_of(error: OSError) -> str:
    reason = getattr(error, "reason", None) or ""
    if "MISMATCH" in reason:
        return "the key does not belong to the certificate"
    if reason in ("NO_START_LINE", "BAD_BASE64_DECODE", "PEM_LIB") or "PEM" in str(error):
        return "they are not a certificate and its key in PEM"
    return reason.lower().replace("_", " ") or error.strerror or "OpenSSL does not take them"


def certificates_of(settings: Settings) -> Certificates | None:
    """Raises StartupError."""
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None and key is None:
        if settings.tls_client_ca_file is not None:
            raise StartupError("--tls-client-ca-file needs --tls-certificate-file and --tls-key-file")
        return None
    if certificate is None or key is None:
        raise StartupError("--tls-certificate-file and --tls-key-file need each other")
    return Certificates(certificate, key, settings.tls_client_ca_file)


def hand_on(data: bytes, protocol: Any) -> None:
    """``protocol`` is an asyncio.BufferedProtocol, whether it says so (asyncio's) or not (uvloop's)."""
    while data:
        buffer = protocol.get_buffer(len(data))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


class Handshake(asyncio.Protocol):
    """A connection until it is encrypted; then ``make_protocol`` has it."""

    def __init__(
        self,
        certificates: Certificates,
        settings: Settings,
        registry: Connections,
        state: "ServerState",
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self.certificates = certificates
        self.settings = settings
        self.registry = registry
        self.state = state
        self.make_protocol = make_protocol
        self.early: list[bytes] = []
        """What came before the handshake (uvloop reads at once, told to pause or not), or right at its end."""
        self.lost = False
        self.wire: asyncio.Transport
        self.task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.wire = transport
        if not self.registry.admit(self):
            # Saying 503 would need the handshake first.
            self.end()
            return
        self.state.connections.add(self)  # type: ignore[arg-type]
        self.task = asyncio.get_running_loop().create_task(self.shake_hands())

    async def shake_hands(self) -> None:
        self.wire.pause_reading()
        loop = asyncio.get_running_loop()
        handshake = None
        try:
            context = await self.certificates.current()
            hello, self.early = b"".join(self.early), []
            seconds = self.settings.receive_timeout_seconds
            upgraded = loop.start_tls(
                self.wire,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=FAREWELL_SECONDS,
            )
            handshake = loop.create_task(upgraded)
            # Until it has put its own protocol in our place, and that has begun; it reads nothing before we go on.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            hand_on(hello, self.wire.get_protocol())
            encrypted = await handshake
        except (OSError, asyncio.CancelledError):
            encrypted = None
        finally:
            self.forget()
        if encrypted is None or self.lost:
            if handshake is not None:
                handshake.cancel()
            self.wire.abort()
            return
        protocol = self.make_protocol()
        encrypted.set_protocol(protocol)
        protocol.connection_made(encrypted)
        if self.early:
            protocol.data_received(b"".join(self.early))

    def data_received(self, data: bytes) -> None:
        self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.forget()

    def forget(self) -> None:
        self.registry.forget(self)
        self.state.connections.discard(self)

    def end(self) -> None:
        self.forget()
        self.wire.abort()

    def evict(self) -> None:
        self.task.cancel()
        self.end()

    shutdown = evict
    """uvicorn's word, when the server ends."""
