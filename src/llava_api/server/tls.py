"""https, with certificates that are read again when they change."""

import base64
import logging
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.watched_files import WatchedFiles

log = logging.getLogger(__name__)

WARN_DAYS = 14
VALIDITY = re.compile(rb"(?:\x17\x0d|\x18\x0f)\d{12,14}Z(?:\x17\x0d|\x18\x0f)(\d{12,14})Z")
"""Of a certificate in DER: two times, each a UTCTime or a GeneralizedTime (RFC 5280, 4.1.2.5)."""
PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]+)-----END")
PASSWORD = "the key has a password, which is not supported. Remove it with: openssl pkey -in KEY -out NEW"


class Certificates(WatchedFiles[list[bytes], ssl.SSLContext]):
    """The certificate, its key and the clients' authorities that are valid now.

    Raises StartupError if they cannot be used at the start.
    """

    plural = "TLS certificates"

    def __init__(self, certificate_file: str, key_file: str, client_ca_file: str | None) -> None:
        self.certificate_file = Path(certificate_file).expanduser()
        self.key_file = Path(key_file).expanduser()
        self.client_ca_file = None if client_ca_file is None else Path(client_ca_file).expanduser()
        self.expires_at = 0.0
        """Unix time at which the first of the certificates in the file expires."""
        super().__init__()

    def context_for_uvicorn(self, config: object, make_default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """uvicorn's ``ssl_context_factory``. The listening socket keeps this context as long as it is open."""
        return self.value

    def use_current(self, connection: Any, server_name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL calls this in every handshake, whether the client names a server or not."""
        connection.context = self.value

    def files(self) -> list[Path]:
        return [file for file in (self.certificate_file, self.key_file, self.client_ca_file) if file is not None]

    def names(self) -> list[str]:
        return [str(file) for file in self.files()]

    def read(self) -> list[bytes]:
        try:
            return [file.read_bytes() for file in self.files()]
        except OSError as error:
            raise StartupError(f"TLS: {error.filename} cannot be read: {error.strerror}") from error

    def make(self, contents: list[bytes]) -> ssl.SSLContext:
        """Always a new context, so that a broken pair does no harm to the one in use."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = self.use_current
        asked = []

        def no_password() -> str:
            # Without this callback, OpenSSL would ask for the password at the terminal.
            asked.append(True)
            return ""

        try:
            context.load_cert_chain(self.certificate_file, self.key_file, no_password)
        except (ssl.SSLError, OSError) as error:
            reason = PASSWORD if asked else reason_of(error)
            raise StartupError(f"TLS: {self.certificate_file} and {self.key_file} cannot be used: {reason}") from error
        if self.client_ca_file is not None:
            try:
                context.load_verify_locations(self.client_ca_file)
            except (ssl.SSLError, OSError) as error:
                raise StartupError(f"TLS: {self.client_ca_file} holds no certificates in PEM") from error
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session is not verified again, so it would outlive the removal of its authority.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        self.expires_at = expiry_of(contents[0])
        if self.days_left < WARN_DAYS:
            log.warning("TLS: %s", self.expiry)
        return context

    @property
    def days_left(self) -> float:
        return (self.expires_at - time.time()) / 86400

    @property
    def expiry(self) -> str:
        when = datetime.fromtimestamp(self.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"{self.certificate_file} {'expires' if self.days_left > 0 else 'expired'} at {when}"


def expiry_of(pem: bytes) -> float:
    """Unix time at which the first of the certificates expires."""
    times = []
    for certificate in PEM.findall(pem):
        found = VALIDITY.search(base64.b64decode(certificate))
        assert found is not None, "OpenSSL has read this certificate"
        digits = found[1].decode()
        made = datetime.strptime(digits, "%y%m%d%H%M%S" if len(digits) == 12 else "%Y%m%d%H%M%S")
        times.append(made.replace(tzinfo=UTC).timestamp())
    return min(times)


def reason_of(error: OSError) -> str:
    reason = getattr(error, "reason", None) or ""
    if "MISMATCH" in reason:
        return "the key does not belong to the certificate"
    if reason in ("NO_START_LINE", "BAD_BASE64_DECODE", "PEM_LIB") or "PEM" in str(error):
        return "they are not a certificate and its key in PEM"
    return reason.lower().replace("_", " ") or error.strerror or "OpenSSL rejects them"


def open_certificates(settings: Settings) -> Certificates | None:
    """Raises StartupError."""
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None and key is None:
        if settings.tls_client_ca_file is not None:
            raise StartupError("--tls-client-ca-file needs --tls-certificate-file and --tls-key-file")
        return None
    if certificate is None or key is None:
        raise StartupError("--tls-certificate-file and --tls-key-file need each other")
    return Certificates(certificate, key, settings.tls_client_ca_file)
