"""Images from the web: the only fetcher of the product.

It is built on httpcore2, the transport of httpx2, because there a public argument decides how sockets are opened. This
module looks names up, ``guard`` judges each address, and an address that was judged is the one that is dialled, so a
name that changes its answer in between (DNS rebinding) gains nothing. httpcore2 follows no redirects, keeps no cookies,
knows no proxies and unpacks no encodings; what is wanted of that is done below. (httpx-secure 2.0 connects to one
address of a name before it judges it, which shows a stranger which inner ports are open.)

Error messages are fixed texts. A name that does not exist and one of an inner address get the same one.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import anyio
import httpcore2
import httpx2

from llava_api import __version__
from llava_api.concurrency.admission import Admission
from llava_api.concurrency.single_flight import SingleFlight, cancellable
from llava_api.concurrency.threads import FairThreads
from llava_api.errors import BadImage, Busy, ErrorCode
from llava_api.images.guard import Guard
from llava_api.images.source import too_large
from llava_api.settings import Settings

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> every numeric address of the host."""

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 8192
REDIRECTS = (301, 302, 303, 307, 308)
CONNECT_SECONDS = 3.0
"""For one address; a name may have several."""
MAX_HEAD_BYTES = 256 * 1024
"""More than a head may have, because the first bytes of the body may come with it."""
PARTS_AT_ONCE = 64
LEAST_PART_BYTES = 16
"""Average size of the parts of a body. HTTP's chunks may have one byte, and each costs as much as one of 64 KiB."""
NOT_IMAGES = {
    "text/html": "a web page (HTML)",
    "text/plain": "plain text",
    "application/json": "JSON",
    "application/pdf": "a PDF file",
    "image/svg+xml": "an SVG drawing",
}
SENT = [
    (b"User-Agent", f"llava-api/{__version__}".encode()),
    (b"Accept", b"image/jpeg, image/png, image/webp, image/gif, image/bmp"),
    (b"Accept-Encoding", b"identity"),
]

SWITCHED_OFF = "This server fetches no images from the web: send the image itself as a base64 data: URL."
NOT_ALLOWED = (
    "This server may not fetch the image's URL: it fetches http and https URLs of public hosts, without a user name "
    "and at the usual ports. Send the image itself as a base64 data: URL."
)
UNREACHABLE = (
    "The image's host cannot be reached at a public address: check the URL, or send the image itself as a base64 data: "
    "URL."
)
BROKEN = (
    "The image's host closed the connection or did not answer with HTTP: try again, or send the image itself as a "
    "base64 data: URL."
)
TINY_PARTS = "The image's host sends it in very small parts: send the image itself as a base64 data: URL."
MANY_FETCHES = "This server is fetching many images: try again in a few seconds."
TOO_SLOW = (
    "The image's host took longer than the {seconds:g} seconds this server waits: try again, or send the image itself "
    "as a base64 data: URL."
)
NOT_DIRECT = "The image's URL is redirected more than {most} times: use the address that it ends at."


def not_allowed() -> BadImage:
    return BadImage(NOT_ALLOWED, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)


def failed(message: str) -> BadImage:
    return BadImage(message, code=ErrorCode.IMAGE_FETCH_FAILED)


class BoundedStream(httpcore2.AsyncNetworkStream):
    """A connection for one response, which bounds the bytes before the body and closes if a TLS handshake is cancelled.

    httpcore2 bounds each head that a host may send before the last one (``100 Continue``), but not their number.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self.stream = stream
        self.before_body = 0
        self.in_body = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self.stream.read(max_bytes, timeout)
        self.before_body += len(data)
        if not self.in_body and self.before_body > MAX_HEAD_BYTES:
            raise httpcore2.RemoteProtocolError("too much before the body")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return BoundedStream(await self.stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class GuardedBackend(httpcore2.AnyIOBackend):
    """Opens connections for httpcore2, and only to addresses that the guard allows."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self.guard = guard
        self.resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises the same BadImage for every reason."""
        try:
            addresses = list(dict.fromkeys(await self.resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise failed(UNREACHABLE) from error
        if not addresses or not all(self.guard.check_address(address) for address in addresses):
            raise failed(UNREACHABLE)
        for address in addresses:
            try:
                stream = await super().connect_tcp(address, port, CONNECT_SECONDS, local_address, socket_options)
                return BoundedStream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        raise failed(UNREACHABLE)


class Fetcher:
    """Fetches images within the settings' limits. ``resolve`` replaces the system's look-up of names, for tests."""

    def __init__(self, settings: Settings, resolve: Resolve | None = None) -> None:
        self.settings = settings
        self.guard = Guard(settings.allowed_media_cidrs, settings.allowed_media_domains, settings.allowed_media_ports)
        self.ssl_context = httpcore2.default_ssl_context()
        at_once, per_caller = settings.max_image_fetches, settings.max_image_fetches_per_caller
        self.fetches: SingleFlight[bytes] = SingleFlight(Admission(at_once, per_caller=per_caller))
        self.resolve = resolve
        # A look-up cannot be broken off. In threads of their own, those that hang delay only their own callers.
        self.look_ups: FairThreads[list[str]] = FairThreads(
            at_once, "resolve", Admission(at_once, per_caller=per_caller)
        )

    def close(self) -> None:
        self.look_ups.close()

    async def fetch(self, url: str, param: str, caller: str, max_bytes: int) -> bytes:
        """The bytes that an http or https URL leads to; requests that want them at the same time share one fetch.

        ``caller``: whose fetches are counted together. Raises BadImage at ``param``, and Busy.
        """
        seconds = self.settings.image_fetch_timeout_seconds
        begun = False
        try:
            target = self.parse(url)
            owner = caller if self.settings.isolate_caches else ""
            async with asyncio.timeout(seconds):
                key = (owner, str(target), max_bytes)
                flight = await self.fetches.join(
                    caller, lambda: cancellable(self.follow(target, caller, max_bytes)), key
                )
                begun = True
                return await flight.result()
        except BadImage as error:
            raise error.at(param) from error
        except TimeoutError as error:
            if not begun:
                raise Busy(MANY_FETCHES) from error
            raise failed(TOO_SLOW.format(seconds=seconds)).at(param) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            raise failed(BROKEN).at(param) from error

    def parse(self, text: str) -> httpx2.URL:
        if not self.settings.fetch_images:
            raise BadImage(SWITCHED_OFF, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
        if len(text) > MAX_URL_CHARACTERS:
            raise not_allowed()
        try:
            return self.judge(httpx2.URL(text))
        except (httpx2.InvalidURL, ValueError) as error:
            raise not_allowed() from error

    def judge(self, url: httpx2.URL) -> httpx2.URL:
        if not self.guard.check_url(url):
            raise not_allowed()
        return url.copy_with(fragment=None)

    async def follow(self, url: httpx2.URL, caller: str, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self.get(url, caller, max_bytes)
            if isinstance(found, bytes):
                return found
            if url.scheme == "https" and found.scheme != "https":
                raise not_allowed()
            url = self.judge(found)
        raise failed(NOT_DIRECT.format(most=MAX_REDIRECTS))

    async def get(self, url: httpx2.URL, caller: str, max_bytes: int) -> bytes | httpx2.URL:
        """The image, or the address that it has moved to."""
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        backend = GuardedBackend(self.guard, self.resolve or partial(self.look_up, caller))
        # A connection is for one answer: nothing that a host sends is left for the next request.
        connection = httpcore2.AsyncHTTPConnection(target.origin, self.ssl_context, network_backend=backend)
        request = connection.stream("GET", target, headers=[(b"Host", url.netloc), *SENT])
        async with connection, request as response:
            stream = response.extensions.get("network_stream")
            if isinstance(stream, BoundedStream):
                stream.in_body = True
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in headers:
                try:
                    return url.join(headers[b"location"].decode("latin-1"))
                except (httpx2.InvalidURL, ValueError) as error:
                    raise not_allowed() from error
            check_head(response.status, headers, max_bytes)
            return await read_body(response, max_bytes)

    async def look_up(self, caller: str, host: str, port: int) -> list[str]:
        return await self.look_ups.run(caller, partial(look_up, host, port))


def look_up(host: str, port: int) -> list[str]:
    return [str(address[4][0]) for address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def read_body(response: httpcore2.Response, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_stream():
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
        parts.append(part)
        if len(parts) % PARTS_AT_ONCE == 0:
            if size < len(parts) * LEAST_PART_BYTES:
                raise failed(TINY_PARTS)
            # httpcore2 hands out parts that have arrived without a pause, while others wait for the event loop.
            await asyncio.sleep(0)
    return b"".join(parts)


def check_head(status: int, headers: dict[bytes, bytes], max_bytes: int) -> None:
    """Refuse by status and headers what cannot be an image, or is too large. Raises BadImage."""
    if status != 200:
        raise failed(f"The image's host answered with status {status}: check the URL.")
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
    if kind in NOT_IMAGES:
        raise failed(f"The URL leads to {NOT_IMAGES[kind]}, not to an image: give the image's own address.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        # The request asked for plain bytes, and unpacking what a stranger has packed may take all memory.
        raise failed("The image's host sent it compressed, unasked: send the image itself as a base64 data: URL.")
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large(max_bytes)
