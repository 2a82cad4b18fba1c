"""Refuses requests that two servers could read in two ways: behind a proxy those are how one request hides another.

llhttp refuses most by itself: Content-Length twice or beside Transfer-Encoding, folded headers, a line feed alone,
spaces before a colon, control characters, sizes that overflow. What it lets through and we do not is here.
"""

import re

import httptools

from llava_api.errors import BadHttp

Headers = list[tuple[bytes, bytes]]
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
NOT_HTTP = "This is not a request in HTTP/1.1 that this server can read without doubt."
VERSION = "This server speaks HTTP/1.1 and HTTP/1.0."
TRANSFER = "Of transfer encodings this server takes chunked alone, and only in HTTP/1.1."
LENGTH = "The request's Content-Length has more digits than any length needs."
MAX_DIGITS = 19
NO_HOST = "A request in HTTP/1.1 needs one Host header."
HOSTS = "A request takes one Host header, with the name of a host in it."
TARGET = "The address in the request's first line must be a path such as /v1/models."
OTHER_HOST = "The request's first line and its Host header name two hosts."


def check_head(version: str, method: bytes, target: bytes, headers: Headers) -> bytes:
    """The target, as a path and a query. Raises ApiError. ``headers`` have names in small letters."""
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
        elif name == b"content-length" and len(value) > MAX_DIGITS:
            raise BadHttp(LENGTH)
    if host is None and version == "1.1":
        raise BadHttp(NO_HOST)
    if target.startswith(b"/") and b"#" not in target:
        return target
    return path_of(method, target, host)


def path_of(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """Of a target that is no path by itself. Raises ApiError."""
    if target == b"*" and method == b"OPTIONS":
        return target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise BadHttp(TARGET) from None
    if url.schema is None or url.schema.lower() not in (b"http", b"https") or url.fragment is not None:
        raise BadHttp(TARGET)
    named = host_of(b"//" + host) if host is not None else None
    if named is not None and named != url.host.lower():
        raise BadHttp(OTHER_HOST)
    path: bytes = url.path or b"/"
    return path if url.query is None else path + b"?" + url.query


def host_of(address: bytes) -> bytes:
    try:
        found: bytes = httptools.parse_url(b"http:" + address + b"/").host
    except httptools.HttpParserInvalidURLError:
        raise BadHttp(HOSTS) from None
    return found.lower()


def has_long_body(headers: Headers, short_bytes: int) -> bool:
    """Whether a body is announced that is longer than ``short_bytes``, of unknown length, or held back until asked."""
    for name, value in headers:
        if name == b"content-length" and int(value) > short_bytes:
            return True
        if name == b"transfer-encoding" or (name == b"expect" and value.lower() == b"100-continue"):
            return True
    return False


def framing_of(headers: Headers) -> bytes | None:
    """The header that says where the body ends; None where there is no body."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0):
            return name + b": " + value
    return None
