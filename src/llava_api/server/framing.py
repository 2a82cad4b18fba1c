"""Refuses requests whose framing is ambiguous: a proxy could read such a request in another way than this server does.

That is how one request is smuggled inside another. llhttp refuses most of them: two Content-Length headers, or one
beside Transfer-Encoding; folded headers; a line feed without a carriage return; spaces before a colon; control
characters; sizes that overflow. This module refuses the rest.
"""

import re

import httptools

from llava_api.errors import BadHttp

Headers = list[tuple[bytes, bytes]]
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
NOT_HTTP = "This is not an HTTP/1.1 request, or it is ambiguous."
VERSION = "This server speaks HTTP/1.1 and HTTP/1.0."
TRANSFER = "The only transfer encoding that this server accepts is chunked, in HTTP/1.1."
LENGTH = "The request's Content-Length has too many digits."
MAX_LENGTH_DIGITS = 19
NO_HOST = "An HTTP/1.1 request needs one Host header."
HOSTS = "A request must have one Host header, with the name of a host."
TARGET = "The address in the request's first line must be a path such as /v1/models."
OTHER_HOST = "The request's first line and its Host header name two hosts."


def check_head(version: str, method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the target as a path and a query. Raises BadHttp. Names in ``headers`` are in lower case."""
    if version not in ("1.1", "1.0"):
        raise BadHttp(VERSION)
    host = None
    for name, value in headers:
        if name == b"host":
            if host is not None or not HOST.fullmatch(value):
                raise BadHttp(HOSTS)
            host = value
        elif name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
            raise BadHttp(TRANSFER)
        elif name == b"content-length" and len(value) > MAX_LENGTH_DIGITS:
            raise BadHttp(LENGTH)
    if host is None and version == "1.1":
        raise BadHttp(NO_HOST)
    if target.startswith(b"/") and b"#" not in target:
        return target
    return path_of_url(method, target, host)


def path_of_url(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """Return the path and the query of a target that does not begin with a slash. Raises BadHttp."""
    if target == b"*" and method == b"OPTIONS":
        return target
    try:
        url = httptools.parse_url(target)
        host_name = None if host is None else httptools.parse_url(b"http://" + host + b"/").host
    except httptools.HttpParserInvalidURLError:
        raise BadHttp(TARGET) from None
    if url.schema is None or url.schema.lower() not in (b"http", b"https") or url.fragment is not None:
        raise BadHttp(TARGET)
    if host_name is not None and host_name.lower() != url.host.lower():
        raise BadHttp(OTHER_HOST)
    path: bytes = url.path or b"/"
    return path if url.query is None else path + b"?" + url.query


def has_long_body(headers: Headers, short_bytes: int) -> bool:
    """Whether the body is longer than ``short_bytes``, of unknown length, or only sent after 100 Continue."""
    return any(
        name == b"transfer-encoding"
        or (name == b"content-length" and int(value) > short_bytes)
        or (name == b"expect" and value.lower() == b"100-continue")
        for name, value in headers
    )


def body_framing(headers: Headers) -> bytes | None:
    """Return the header that says where the body ends; None if there is no body."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0):
            return name + b": " + value
    return None
