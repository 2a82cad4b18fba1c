"""A small web for the fetcher: an image host that it may reach, an inner one that it must not, and their names."""

import asyncio
import errno
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llava_api.errors import BadImage
from llava_api.images.fetch import Fetcher
from llava_api.settings import Settings
from tests.support.image_host import ImageHost
from tests.support.names import Names

PARAM = "messages[2].content[1].image_url"
MAX_BYTES = 100_000
TIMEOUT_SECONDS = 0.6
"""For hosts that hang: they are given up then."""
PATIENT_SECONDS = 60.0
"""For all others, so that a busy machine gives none of them up."""
GIVEN_AWAY = re.compile(
    r"<|>|0x|\bobject\b|Traceback|Error|Exception|httpcore|httpx|anyio|h11|Errno|SSL|certificate|\.test\b|\\|[\[\]]"
    r"|secret|passwd|metadata|\d+\.\d+\.\d+|::|(?<![\w:/])/\w"
)
"""What a refusal must not give away: the host, its address, its files, and what the fetcher is made of."""


@dataclass
class Web:
    host: ImageHost
    """images.test, at 127.0.0.1, the one loopback address that the settings allow."""
    inner: ImageHost
    """inner.test, at 127.0.0.2 and the same port: not allowed."""
    names: Names

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "allowed_media_cidrs": ["127.0.0.1/32"],
            "allowed_media_ports": [self.host.port],
            "image_fetch_timeout_seconds": PATIENT_SECONDS,
            **more,
        }

    @asynccontextmanager
    async def fetcher(self, **more: Any) -> AsyncIterator[Fetcher]:
        fetcher = Fetcher(Settings.model_validate(self.settings(**more)), self.names)
        try:
            yield fetcher
        finally:
            fetcher.close()

    async def settle(self) -> None:
        """Wait until the host has noticed that its callers hung up."""
        for _ in range(200):
            if not self.host.open_connections:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def small_web(tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    names = Names(pictures=["127.0.0.1"], other=["127.0.0.1"], inner=["127.0.0.2"])
    async with AsyncExitStack() as stack:
        while True:
            try:
                async with AsyncExitStack() as opening:
                    host = await opening.enter_async_context(ImageHost(tls=tls))
                    inner = await opening.enter_async_context(ImageHost("127.0.0.2", host.port))
                    stack.push_async_exit(opening.pop_all())
                break
            except OSError as error:
                # The port is free at the first address, and another test's at the second.
                if error.errno != errno.EADDRINUSE:
                    raise
        yield Web(host, inner, names)


async def fetch(fetcher: Fetcher, url: str, caller: str = "somebody", max_bytes: int = MAX_BYTES) -> bytes:
    return await fetcher.fetch(url, PARAM, caller, max_bytes)


async def refusal(fetcher: Fetcher, url: str, caller: str = "somebody", max_bytes: int = MAX_BYTES) -> BadImage:
    """The complaint about a URL, its form and its words checked."""
    with pytest.raises(BadImage) as refused:
        await fetch(fetcher, url, caller, max_bytes)
    error = refused.value
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", PARAM)
    check_words(error.message, fetcher)
    return error


def check_words(message: str, fetcher: Fetcher) -> None:
    assert not GIVEN_AWAY.search(message), message
    assert not any(str(port) in message for port in fetcher.settings.allowed_media_ports)
    assert message.endswith(".")
    assert re.search(r"\b(send|check|give|use|try)\b", message, re.IGNORECASE), message


def certificate_for(name: str, folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A throw-away certificate that signs itself: TLS settings of a host, and the file for clients that trust it."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    request = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
    files = ["-addext", f"subjectAltName=DNS:{name}", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([program, *request.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
