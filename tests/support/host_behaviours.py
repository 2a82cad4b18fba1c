"""What the hostile image host does for each path: bytes to send, pauses, and how it ends.

Data for ``image_host``. A script is a series of bytes, pauses (floats, in seconds), and perhaps CLOSE or RESET.
"""

import gzip
import itertools
from collections.abc import Callable, Iterable, Iterator

from PIL import Image

from tests.support.bad_images import SVG
from tests.support.image_files import encoded, png, zlib_zeros

CLOSE = b"(close)"
RESET = b"(reset)"
HANG = 3600.0
STEP_SECONDS = 0.05
Script = Iterable[bytes | float]

PNG = encoded(Image.new("RGB", (60, 40), "red"), "PNG")
JPEG = encoded(Image.new("RGB", (60, 40), "red"), "JPEG")
COOKIE = "Set-Cookie: session=secret-of-the-host; Path=/"
PDF = b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"
HTML = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode("latin-1")


def reply(body: bytes, kind: str = "image/png", *lines: str, status: str = "200 OK") -> bytes:
    return head(f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines, status=status) + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def redirect(target: str, *lines: str, status: str = "302 Found") -> bytes:
    return head(f"Location: {target}", "Content-Length: 0", *lines, status=status)


def bytewise(data: bytes, pause_seconds: float) -> Iterator[bytes | float]:
    for value in data:
        yield bytes([value])
        yield pause_seconds


PICTURE = "Content-Type: image/png"
CHUNKED = "Transfer-Encoding: chunked"
BOMB = gzip.compress(png(4000, 4000, zlib_zeros(4000 * 12_001)) + bytes(20_000_000), 1)

GOOD: dict[str, Script] = {
    "/good.png": [reply(PNG)],
    "/good.jpg": [reply(JPEG, "image/jpeg")],
    "/good.png?size=large&name=a%20b": [reply(PNG)],
    "/good/no-length": [head(PICTURE, "Connection: close"), PNG, CLOSE],
    "/good/http-1.0": [b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG, CLOSE],
    "/good/chunked": [head(PICTURE, CHUNKED), chunked(PNG[:50], PNG[50:])],
    "/good/no-type": [head(f"Content-Length: {len(PNG)}") + PNG],
    "/good/octet-stream": [reply(PNG, "application/octet-stream")],
    "/good/other-type": [reply(PNG, "image/jpeg")],
    "/good/cookie": [reply(PNG, "image/png", COOKIE)],
    "/good/early-hints": [head("Link: </a.css>", status="103 Early Hints"), reply(PNG)],
    "/good/in-pieces": [head(PICTURE, f"Content-Length: {len(PNG)}"), PNG[:40], 0.1, PNG[40:90], 0.1, PNG[90:]],
    "/redirect/relative": [redirect("../good.png")],
    "/redirect/no-scheme": [redirect("//pictures.test:{port}/good.png")],
    "/redirect/absolute": [redirect("http://pictures.test:{port}/good.png")],
    "/redirect/cookie": [redirect("/good.png", COOKIE)],
    "/redirect/with-a-body": [redirect("/good.png").replace(b"Length: 0", b"Length: 9") + b"moved on\n"],
    "/redirects/1": [redirect("/good.png", status="301 Moved Permanently")],
    "/redirects/2": [redirect("/redirects/1", status="307 Temporary Redirect")],
    "/redirects/3": [redirect("/redirects/2", status="308 Permanent Redirect")],
}
"""Paths that give an image in the end."""

HANGING: dict[str, Callable[[], Script]] = {
    "/hang": lambda: [HANG],
    "/hang/in-headers": lambda: [b"HTTP/1.1 200 OK\r\nContent-", HANG],
    "/hang/after-headers": lambda: [head(PICTURE, f"Content-Length: {len(PNG)}"), HANG],
    "/hang/in-body": lambda: [head(PICTURE, f"Content-Length: {len(PNG)}"), PNG[:50], HANG],
    "/hang/in-chunk": lambda: [head(PICTURE, CHUNKED), b"ffff\r\n" + PNG[:50], HANG],
    "/hang/after-redirect": lambda: [redirect("/hang")],
    "/slow/headers": lambda: bytewise(head(PICTURE, *(f"X-{number}: {number}" for number in range(999))), STEP_SECONDS),
    "/slow/body": lambda: itertools.chain(
        [head(PICTURE, f"Content-Length: {len(PNG) * 100}")], bytewise(PNG * 100, STEP_SECONDS)
    ),
    "/slow/body-without-length": lambda: itertools.chain([head(PICTURE)], bytewise(PNG * 100, STEP_SECONDS)),
    "/slow/one-byte-a-second": lambda: itertools.chain([head(PICTURE)], bytewise(PNG, 1.0)),
    "/slow/early-hints": lambda: itertools.cycle([head(status="103 Early Hints"), STEP_SECONDS]),
    "/endless/early-hints": lambda: itertools.repeat(head(status="103 Early Hints") * 100),
}
"""Nothing useful comes, and no end: to be given up at the deadline."""

ENDLESS: dict[str, Callable[[], Script]] = {
    "/endless/body": lambda: itertools.chain([head(PICTURE)], itertools.repeat(bytes(65_536))),
    "/endless/chunks": lambda: itertools.chain([head(PICTURE, CHUNKED)], itertools.repeat(b"ffff\r\n%065535d\r\n" % 0)),
    "/endless/tiny-chunks": lambda: itertools.chain([head(PICTURE, CHUNKED)], itertools.repeat(b"1\r\n0\r\n" * 9000)),
    "/length/huge": lambda: itertools.chain(
        [head(PICTURE, f"Content-Length: {10**15}")], itertools.repeat(bytes(65_536))
    ),
}
"""More than the limit of bytes, however much that is; or said to be."""

BROKEN: dict[str, Callable[[], Script]] = {
    "/endless/headers": lambda: itertools.chain([head()[:-2]], itertools.repeat(b"X-Filler: 0123456789\r\n" * 100)),
    "/endless/header-line": lambda: itertools.chain([head()[:-2], b"X-Filler: "], itertools.repeat(b"0" * 9000)),
    "/endless/status-line": lambda: itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(b"O" * 9000)),
    "/endless/chunk-size": lambda: itertools.chain([head(PICTURE, CHUNKED)], itertools.repeat(b"0" * 9000)),
    "/endless/chunk-extension": lambda: itertools.chain(
        [head(PICTURE, CHUNKED), b"5;a="], itertools.repeat(b"0" * 9000)
    ),
    "/endless/trailers": lambda: itertools.chain(
        [head(PICTURE, CHUNKED), chunked(PNG)[:-2]], itertools.repeat(b"X-Filler: 0123456789\r\n" * 100)
    ),
    "/length/too-large": lambda: [head(PICTURE, f"Content-Length: {len(PNG) + 9}"), PNG, CLOSE],
    "/length/negative": lambda: [head(PICTURE, "Content-Length: -1"), PNG, CLOSE],
    "/length/no-number": lambda: [head(PICTURE, "Content-Length: many"), PNG, CLOSE],
    "/length/two": lambda: [head(PICTURE, f"Content-Length: {len(PNG)}", "Content-Length: 7"), PNG, CLOSE],
    "/chunks/no-number": lambda: [head(PICTURE, CHUNKED), b"xyz\r\n" + PNG, CLOSE],
    "/chunks/cut-off": lambda: [head(PICTURE, CHUNKED), chunked(PNG)[:-9], CLOSE],
    "/close/at-once": lambda: [CLOSE],
    "/close/in-headers": lambda: [b"HTTP/1.1 200 OK\r\nContent-Type: ima", CLOSE],
    "/reset/at-once": lambda: [RESET],
    "/reset/in-headers": lambda: [b"HTTP/1.1 200 OK\r\nContent-Type: ima", STEP_SECONDS, RESET],
    "/reset/in-body": lambda: [head(PICTURE, "Content-Length: 99999"), PNG, STEP_SECONDS, RESET],
    "/garbage": lambda: [bytes(range(256)) * 9, CLOSE],
    "/garbage/ssh": lambda: [b"SSH-2.0-OpenSSH_9.2\r\n", CLOSE],
    "/garbage/status": lambda: [b"HTTP/1.1 abc OK\r\n\r\n" + PNG, CLOSE],
    "/garbage/header": lambda: [b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n" + PNG, CLOSE],
    "/http-0.9": lambda: [PNG, CLOSE],
    "/http-0.9/html": lambda: [HTML, CLOSE],
}
"""No HTTP, or not to its end."""

STATUSES = {
    f"/status/{status.split()[0]}": status
    for status in (
        "201 Created",
        "202 Accepted",
        "203 Non-Authoritative",
        "206 Partial Content",
        "300 Multiple Choices",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
    )
}
NO_IMAGE: dict[str, Script] = {
    **{path: [reply(b"no", "text/plain", status=status)] for path, status in STATUSES.items()},
    "/upgrade": [head("Connection: Upgrade", "Upgrade: websocket", status="101 Switching Protocols"), CLOSE],
    "/status/204": [head(status="204 No Content")],
    "/status/205": [head("Content-Length: 0", status="205 Reset Content")],
    "/status/206-of-a-picture": [reply(PNG, "image/png", "Content-Range: bytes 0-9/10", status="206 Partial Content")],
    "/status/304": [head(status="304 Not Modified")],
    "/status/404-of-a-picture": [reply(PNG, status="404 Not Found")],
    "/status/404-endless": [head(PICTURE, status="404 Not Found"), *[bytes(65_536)] * 9, HANG],
    "/type/html": [reply(HTML, "text/html; charset=utf-8")],
    "/type/json": [reply(b'{"secret": "of the host"}', "application/json")],
    "/type/pdf": [reply(PDF, "application/pdf")],
    "/type/svg": [reply(SVG, "image/svg+xml")],
    "/gzip-bomb": [reply(BOMB, "image/png", "Content-Encoding: gzip")],
    "/deflate": [reply(b"\x78\x9c" + PNG, "image/png", "Content-Encoding: deflate")],
    "/redirect/nowhere": [head("Content-Length: 0", status="302 Found")],
    "/redirect/to-itself": [redirect("")],
    "/redirects/4": [redirect("/redirects/3")],
    "/redirect/loop": [redirect("/redirect/loop")],
    "/redirect/loop-a": [redirect("/redirect/loop-b")],
    "/redirect/loop-b": [redirect("/redirect/loop-a")],
}
"""Answers without an image."""

REFUSED_LATER: dict[str, Script] = {
    "/empty": [reply(b"")],
    "/length/too-small": [head(PICTURE, "Content-Length: 60", "Connection: close") + PNG, CLOSE],
    "/type/html-as-png": [reply(HTML)],
    "/type/pdf-as-jpeg": [reply(PDF, "image/jpeg")],
    "/type/svg-as-png": [reply(SVG)],
}
"""Correct answers in HTTP, whose bytes are no image: only opening them shows it."""

REDIRECTS = {
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "inner": "http://127.0.0.2:{port}/good.png",
    "inner-name": "http://inner.test:{port}/good.png",
    "odd-spelling": "http://2130706434:{port}/good.png",
    "other-port": "http://127.0.0.1:9/good.png",
    "private": "http://10.0.0.1:{port}/good.png",
    "ipv6-loopback": "http://[::1]:{port}/good.png",
    "mapped": "http://[::ffff:127.0.0.2]:{port}/good.png",
    "file": "file:///etc/passwd",
    "ftp": "ftp://pictures.test/good.png",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "data": "data:image/png;base64,iVBORw0KGgo=",
    "userinfo": "http://user:password@pictures.test:{port}/good.png",
    "nonsense": "http://[::1/good.png",
}
FORBIDDEN: dict[str, Script] = {f"/redirect/{name}": [redirect(target)] for name, target in REDIRECTS.items()}
"""Redirects to addresses that the fetcher must not ask."""


def script(path: str, port: int, elsewhere: str) -> Iterator[bytes | float]:
    """What to do for a path; a 404 for one that is not listed."""
    fixed = GOOD | NO_IMAGE | REFUSED_LATER | FORBIDDEN
    made = HANGING | ENDLESS | BROKEN
    if path == "/redirect/elsewhere":
        steps: Script = [redirect(elsewhere)]
    elif path in made:
        steps = made[path]()
    else:
        steps = fixed.get(path, [reply(b"", "text/plain", status="404 Not Found")])
    written = str(port).encode()
    return (step.replace(b"{port}", written) if isinstance(step, bytes) else step for step in steps)
