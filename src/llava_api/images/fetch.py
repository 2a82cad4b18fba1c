"""Pictures from the web: the one fetcher of the product.

It stands on httpcore, the transport inside httpx, because there the way to a socket is a public argument: names are
looked up here, each address is judged by ``guard``, and an address that was judged is what is dialled, so a name that
changes its mind in between (DNS rebinding) gains nothing. httpcore follows no redirects, keeps no cookies, knows no
proxies and unpacks no encodings; what of that is wanted is done below, in sight. (httpx-secure 2.0 was looked at: it
opens a connection to a name's address before it judges it, which tells a stranger which inner ports are open, and it
judges that one address alone.)

Complaints are fixed words. A name that does not exist and one that stands for an inner address get the same.
"""

import asyncio
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import httpcore
import httpx

from llava_api import __version__
from llava_api.errors import BadImage, Busy, ErrorCode
from llava_api.images.guard import Guard
from llava_api.images.single_flight import SingleFlight
from llava_api.images.source import too_large
from llava_api.settings import Settings

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> every numeric address that the host's name stands for."""
Headers = dict[bytes, bytes]
LookUps = list["asyncio.Future[list[tuple[Any, ...]]]"]
LOOK_UPS: ContextVar[LookUps] = ContextVar("LOOK_UPS")
"""Of the fetch that runs in this task."""

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 8192
REDIRECTS = (301, 302, 303, 307, 308)
CONNECT_SECONDS = 3.0
"""For one address; a name may have several."""
MAX_HEAD_BYTES = 256 * 1024
"""The first bytes of a body may have come along with the head."""
PARTS_AT_ONCE = 64
LEAST_PART_BYTES = 16
"""On the average: HTTP's chunks may be of one byte, each as dear as one of 64 KiB."""
NOT_PICTURES = {
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

SWITCHED_OFF = "This server fetches no pictures from the web: send the picture itself as a base64 data: URL."
NOT_ALLOWED = (
    "This server may not fetch the picture's URL: it fetches http and https URLs of public hosts, without a user name "
    "and at the usual ports. Send the picture itself as a base64 data: URL."
)
UNREACHABLE = (
    "The picture's host cannot be reached at a public address: check the URL, or send the picture itself as a base64 "
    "data: URL."
)
BROKEN = "The picture's host broke off or did not answer as HTTP: try again, or send the picture as a base64 data: URL."
CRUMBS = "The picture's host sends it in crumbs: send the picture itself as a base64 data: URL."
TOO_SLOW = (
    "The picture's host took longer than the {seconds:g} seconds this server waits: try again, or send the picture "
    "itself as a base64 data: URL."
)
NOT_DIRECT = "The picture's URL is redirected more than {most} times: use the address that it ends at."


def not_allowed() -> BadImage:
    return BadImage(NOT_ALLOWED, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)


def failed(message: str) -> BadImage:
    return BadImage(message, code=ErrorCode.IMAGE_FETCH_FAILED)


class SystemResolver:
    """The system's look-up, in threads of its own: a name server that hangs holds up no other work."""

    def __init__(self, at_once: int) -> None:
        self.threads = ThreadPoolExecutor(at_once, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        look_up = asyncio.get_running_loop().run_in_executor(self.threads, self.look_up, host, port)
        LOOK_UPS.get().append(look_up)
        # Shielded, because a look-up in a thread cannot be broken off: whoever gave up on it still holds its slot.
        return [str(address[4][0]) for address in await asyncio.shield(look_up)]

    def look_up(self, host: str, port: int) -> list[tuple[Any, ...]]:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)


class Stream(httpcore.AsyncNetworkStream):
    """A connection for one answer, whose head is bounded, and which is closed when its TLS handshake is cancelled.

    httpcore bounds each of the heads that a host may send before the last (``100 Continue``), not how many they are.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self.stream = stream
        self.before_body = 0
        self.head_is_there = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self.stream.read(max_bytes, timeout)
        self.before_body += len(data)
        if not self.head_is_there and self.before_body > MAX_HEAD_BYTES:
            raise httpcore.RemoteProtocolError("too much before the body")
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
    ) -> httpcore.AsyncNetworkStream:
        try:
            return Stream(await self.stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore, to judged addresses alone."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self.guard = guard
        self.resolve = resolve
        self.dial = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises BadImage, the same for every reason."""
        try:
            addresses = list(dict.fromkeys(await self.resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise failed(UNREACHABLE) from error
        if not addresses or not all(self.guard.check_address(address) for address in addresses):
            raise failed(UNREACHABLE)
        for address in addresses:
            try:
                dialled = self.dial.connect_tcp(address, port, CONNECT_SECONDS, local_address, socket_options)
                return Stream(await dialled)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise failed(UNREACHABLE)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Slots:
    """How many fetches run at once: in the server, and for one caller."""

    def __init__(self, at_once: int, per_caller: int) -> None:
        self.server = asyncio.Semaphore(at_once)
        self.per_caller = per_caller
        self.callers: dict[str, asyncio.Semaphore] = {}
        self.holding: defaultdict[str, int] = defaultdict(int)

    @asynccontextmanager
    async def hold(self, caller: str) -> AsyncIterator[None]:
        """Until the end of the block, and of the look-ups that were begun in it."""
        look_ups: LookUps = []
        LOOK_UPS.set(look_ups)
        await self.take(caller)
        try:
            yield
        finally:
            running = [look_up for look_up in look_ups if not look_up.done()]
            if running:
                last = asyncio.gather(*running, return_exceptions=True)
                last.add_done_callback(lambda _: self.give_back(caller))
            else:
                self.give_back(caller)

    async def take(self, caller: str) -> None:
        mine = self.callers.setdefault(caller, asyncio.Semaphore(self.per_caller))
        self.holding[caller] += 1
        taken = False
        try:
            await mine.acquire()
            taken = True
            await self.server.acquire()
        except BaseException:
            if taken:
                mine.release()
            self.forget(caller)
            raise

    def give_back(self, caller: str) -> None:
        self.server.release()
        self.callers[caller].release()
        self.forget(caller)

    def forget(self, caller: str) -> None:
        self.holding[caller] -= 1
        if not self.holding[caller]:
            del self.holding[caller], self.callers[caller]


class Fetcher:
    """Fetches pictures within the settings' limits. ``resolve`` is where tests put names of their own."""

    def __init__(self, settings: Settings, resolve: Resolve | None = None) -> None:
        self.settings = settings
        self.guard = Guard(settings.allowed_media_cidrs, settings.allowed_media_domains, settings.allowed_media_ports)
        self.system = SystemResolver(settings.max_image_fetches)
        self.slots = Slots(settings.max_image_fetches, settings.max_image_fetches_per_caller)
        self.waiting: SingleFlight[bytes] = SingleFlight()
        self.flights: SingleFlight[bytes] = SingleFlight()
        self.pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=settings.max_image_fetches,
            # A connection is for one answer: nothing of one host's is left for the next request.
            max_keepalive_connections=0,
            network_backend=GuardedBackend(self.guard, resolve or self.system),
        )

    async def close(self) -> None:
        await self.pool.aclose()
        self.system.close()

    async def fetch(self, url: str, param: str, caller: str, max_bytes: int) -> bytes:
        """The bytes behind an http or https URL; requests that want the same at once share one fetch.

        ``caller``: whose fetches are counted together. Each caller waits for a place of his own before he joins a
        fetch, or one could keep others waiting behind hosts of his that hang. Raises BadImage at ``param``, and Busy.
        """
        try:
            target = self.parse(url)
            key = (caller, str(target), max_bytes)
            return await self.waiting.do(key, lambda: self.fetch_once(target, caller, max_bytes))
        except BadImage as error:
            raise error.at(param) from error

    def parse(self, text: str) -> httpx.URL:
        if not self.settings.fetch_images:
            raise BadImage(SWITCHED_OFF, code=ErrorCode.IMAGE_URL_NOT_ALLOWED)
        if len(text) > MAX_URL_CHARACTERS:
            raise not_allowed()
        try:
            return self.judge(httpx.URL(text))
        except (httpx.InvalidURL, ValueError) as error:
            raise not_allowed() from error

    def judge(self, url: httpx.URL) -> httpx.URL:
        if not self.guard.check_url(url):
            raise not_allowed()
        return url.copy_with(fragment=None)

    async def fetch_once(self, url: httpx.URL, caller: str, max_bytes: int) -> bytes:
        seconds = self.settings.image_fetch_timeout_seconds
        dialled = False
        try:
            async with asyncio.timeout(seconds), self.slots.hold(caller):
                dialled = True
                whose = caller if self.settings.isolate_caches else ""
                return await self.flights.do((whose, str(url), max_bytes), lambda: self.follow(url, max_bytes))
        except TimeoutError as error:
            if not dialled:
                raise Busy("This server fetches many pictures at the moment: try again in a few seconds.") from error
            raise failed(TOO_SLOW.format(seconds=seconds)) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise failed(BROKEN) from error

    async def follow(self, url: httpx.URL, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self.get(url, max_bytes)
            if isinstance(found, bytes):
                return found
            if url.scheme == "https" and found.scheme != "https":
                raise not_allowed()
            url = self.judge(found)
        raise failed(NOT_DIRECT.format(most=MAX_REDIRECTS))

    async def get(self, url: httpx.URL, max_bytes: int) -> bytes | httpx.URL:
        """The picture, or where it has gone."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with self.pool.stream("GET", target, headers=[(b"Host", url.netloc), *SENT]) as response:
            stream = response.extensions.get("network_stream")
            if isinstance(stream, Stream):
                stream.head_is_there = True
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in headers:
                try:
                    return url.join(headers[b"location"].decode("latin-1"))
                except (httpx.InvalidURL, ValueError) as error:
                    raise not_allowed() from error
            check_head(response.status, headers, max_bytes)
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_stream():
                size += len(part)
                if size > max_bytes:
                    raise too_large(max_bytes)
                parts.append(part)
                if len(parts) % PARTS_AT_ONCE == 0:
                    if size < len(parts) * LEAST_PART_BYTES:
                        raise failed(CRUMBS)
                    # Parts that have arrived already are handed out without a pause, and others wait for the loop.
                    await asyncio.sleep(0)
            return b"".join(parts)


def check_head(status: int, headers: Headers, max_bytes: int) -> None:
    """Refuse by status and headers what cannot be a picture, or is too large. Raises BadImage."""
    if status != 200:
        raise failed(f"The picture's host answered with status {status}: check the URL.")
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
    if kind in NOT_PICTURES:
        raise failed(f"The URL leads to {NOT_PICTURES[kind]}, not to a picture: give the picture's own address.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        # It was asked for the plain bytes; unpacking what a stranger packed is how bombs go off.
        raise failed("The picture's host sent it compressed, unasked: send the picture itself as a base64 data: URL.")
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large(max_bytes)
