"""Request body -> request object: read up to a limit, parsed by orjson, validated by pydantic, refused in words."""

import codecs
import re
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llava_api.errors import ErrorCode, InvalidRequest, RequestTooLarge, UnsupportedEncoding
from llava_api.limits.account import Account
from llava_api.protocol.wire import MAX_ERRORS, RequestObject, Unread
from llava_api.server.unpack import WINDOW_BITS, unpacked
from llava_api.server.unread import check_unread, json_path
from llava_api.telemetry.record import current

MAX_OBJECTS = 20_000
"""Most objects and lists of one body (or brackets in its texts). A context of 100,000 tokens has no room for more."""
MAX_VALUES = 500_000
MAX_FIELDS = 2_500
"""Most fields of one object: twice what any sensible one has."""
COPIES = 2
"""Copies in memory of a text with images: the text and the decoded files."""
COPIES_GROWN = 3
"""Copies in memory of a body: it grows while it is read, and leaves blocks that are too small for it later."""
FIRST_BYTES = 1_000_000
"""Memory that is allocated at a body's first byte; after that, twice what has arrived. So a large Content-Length costs
nothing before the bytes arrive, and a body of a few megabytes is moved only once or twice."""
MAX_TEXT_BYTES = 8_000_000
"""Most bytes of a body without the base64 of its images: ten contexts of 100,000 tokens."""
MAX_ESCAPES = MAX_TEXT_BYTES // 6
"""Most escapes of the form \\uXXXX among which halves of surrogate pairs are looked for."""
HIGH, LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
LONE_HIGH, LONE_LOW = re.compile(HIGH + rb"(?!" + LOW + rb")"), re.compile(rb"(?<!" + HIGH + rb")" + LOW)
REPLACEMENT = rb"\\ufffd"
IMAGE = re.compile(rb"\s*(?:(?i:data:)[^\"]{0,500}?base64,|\\?/9j|iVBORw|R0lGOD|UklGR|Qk|SUkq|TU0A|AAAA)")
"""How a string with an image begins: with a ``data:`` URL's type, or with the first bytes of a JPEG, PNG, GIF, WebP,
BMP, TIFF or HEIF in base64."""
SHORT_STRING = 1024
"""Shorter strings are counted as text, even if they are images."""
Model = TypeVar("Model", bound=RequestObject)


async def read_request(
    request: Request, model: type[Model], max_body_bytes: int, strict: bool, account: Account
) -> Model:
    """``strict``: as --strict-fields says. Raises InvalidRequest and its kinds, and Busy."""
    wanted = parse(await read_body(request, max_body_bytes, account), model, strict)
    record = current()
    record.model, record.stream = getattr(wanted, "model", None), bool(getattr(wanted, "stream", False))
    return wanted


async def read_body(request: Request, max_body_bytes: int, account: Account) -> bytearray:
    """Raises UnsupportedEncoding; RequestTooLarge as soon as the limit is passed, whatever Content-Length said; Busy.

    ``account`` is charged for memory as it is allocated. A body that cannot fit now is refused before it is read.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *WINDOW_BITS):
        raise UnsupportedEncoding("This server supports the Content-Encodings gzip and deflate: send one, or none.")
    refusal = RequestTooLarge(f"The request is larger than the {max_body_bytes} bytes that this server accepts.")
    announced = request.headers.get("content-length", "0")
    expected = int(announced) if announced.isdigit() else 0
    if expected > max_body_bytes:
        raise refusal
    account.memory.check(COPIES_GROWN * expected)
    parts = request.stream()
    if encoding != "identity":
        expected, parts = 0, unpacked(parts, encoding, refusal, max_body_bytes)
    body = bytearray()
    size = 0
    async for part in parts:
        end = size + len(part)
        if end > max_body_bytes:
            raise refusal
        if end > len(body):
            room = max(end, min(expected, max(FIRST_BYTES, 2 * end)))
            account.memory.take(COPIES_GROWN * (room - len(body)))
            if expected:
                body += bytes(room - len(body))
        body[size:end] = part
        size = end
    del body[size:]
    return body


def objects_in(text: bytes | bytearray) -> int:
    """At most this number of objects and lists are in a JSON text: braces in its strings count too."""
    return text.count(b"{") + text.count(b"[")


def parse(body: bytes | bytearray, model: type[Model], strict: bool = False) -> Model:
    """Raises InvalidRequest, which names one field to correct."""
    # Counted before orjson makes a million small objects that are all invalid. Base64 has none of these characters.
    text = without_base64(body)
    commas = check_parts(text)
    data = json_object(body)
    if commas > MAX_FIELDS:
        check_fields(data)
    return validated(data, model, strict)


def validated(data: dict[str, Any], model: type[Model], strict: bool) -> Model:
    """Raises InvalidRequest, which names one field to correct."""
    unread = Unread()
    try:
        made = model.model_validate(data, strict=strict or None, context=unread)
    except ValidationError as error:
        raise refusal_of(error) from error
    if unread.found:
        check_unread(made, data, strict, current())
    return made


def check_parts(text: bytes) -> int:
    """The number of commas in a body without its images. Raises InvalidRequest for more parts than a body may have."""
    commas = text.count(b",")
    if objects_in(text) > MAX_OBJECTS or commas > MAX_VALUES:
        raise InvalidRequest("The request's body has too many parts: send fewer messages, or shorter ones.")
    return commas


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Raises InvalidRequest."""
    try:
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError:
            data = orjson.loads(mended(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("The request's body is not valid JSON.", code=ErrorCode.INVALID_JSON) from error
    if not isinstance(data, dict):
        raise InvalidRequest("The request's body must be a JSON object.", code=ErrorCode.INVALID_JSON)
    return data


def no_image(image: memoryview) -> bytes:
    return b""


def without_base64(body: bytes | bytearray, instead: Callable[[memoryview], bytes] = no_image) -> bytes:
    """A body with what ``instead`` gives for the base64 of each image, which is still JSON.

    Raises InvalidRequest if more than MAX_TEXT_BYTES are left.

    Looks for the beginning of a string before every 1024th byte, so the time does not grow with the number of strings.
    """
    pieces: list[bytes] = []
    here, place, left = 0, SHORT_STRING, MAX_TEXT_BYTES
    while here >= 0:
        quote = body.rfind(b'"', max(here, place - SHORT_STRING), place)
        is_image = place < len(body) and quote >= 0 and IMAGE.match(body, quote + 1) is not None
        end = quote + 1 if is_image else min(place, len(body))
        if end - here > left:
            raise InvalidRequest(
                f"The request's body has more than {MAX_TEXT_BYTES} bytes besides its images' base64: send less."
            )
        if not is_image and place < len(body):
            place += SHORT_STRING
            continue
        pieces.append(bytes(body[here:end]))
        left -= end - here
        here = body.find(b'"', place) if is_image else -1
        if is_image:
            with memoryview(body) as whole:
                pieces.append(instead(whole[end : here if here >= 0 else len(body)]))
        place = here + SHORT_STRING
    return b"".join(pieces)


def mended(body: bytes | bytearray) -> bytes | bytearray:
    """JSON without a byte order mark, and with U+FFFD for each half of a surrogate pair that is escaped by itself."""
    body = body.removeprefix(codecs.BOM_UTF8)
    if b"\0" in body or body.count(b"\\u") > MAX_ESCAPES:
        return body
    # Zero bytes, which JSON cannot hold, take the place of escaped backslashes, so each backslash that is left is an
    # escape's first.
    body = body.replace(b"\\\\", b"\0\0")
    return LONE_LOW.sub(REPLACEMENT, LONE_HIGH.sub(REPLACEMENT, body)).replace(b"\0\0", b"\\\\")


def check_fields(data: object) -> None:
    """Raises InvalidRequest if an object has too many fields."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if len(value) > MAX_FIELDS:
                raise InvalidRequest(f"An object in the request's body has more than {MAX_FIELDS} fields.")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += [inner for inner in value if isinstance(inner, dict | list)]


KINDS = {
    "string_type": "a string",
    "int_type": "an integer of up to 64 bits",
    "int_parsing": "an integer of up to 64 bits",
    "int_parsing_size": "an integer of up to 64 bits",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}
"""Pydantic's errors about a wrong type -> the right type in words."""
BOUNDS = {
    "too_short": "it must have {min_length} or more entries",
    "too_long": "it may have up to {max_length} entries",
    "string_too_short": "it must have {min_length} or more characters",
    "string_too_long": "it may have up to {max_length} characters",
    "string_pattern_mismatch": "it must match the pattern {pattern}",
    "greater_than_equal": "it must be {ge} or more",
    "less_than_equal": "it must be {le} or less",
    "less_than": "it must be below {lt}",
    "literal_error": "it must be {expected}",
}


def refusal_of(error: ValidationError) -> InvalidRequest:
    """One sentence about the most precise of pydantic's errors. Their locations are paths in the body (JSON_PATHS)."""
    if error.error_count() > MAX_ERRORS:
        return InvalidRequest("The request's body has too many errors to name them.")
    found = error.errors(include_url=False, include_input=False)
    best = max(found, key=precision)
    kind, context, param = best["type"], best.get("ctx", {}), json_path(best["loc"])
    if kind == "refused":
        return InvalidRequest(context["reason"], param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    if kind == "missing":
        absent = f"Missing required parameter: '{param}'."
        return InvalidRequest(absent, param=param, code=ErrorCode.MISSING_REQUIRED_PARAMETER)
    if kind in KINDS:
        here = [other["type"] for other in found if other["loc"] == best["loc"]]
        words = "it must be " + " or ".join(dict.fromkeys(KINDS[one] for one in here if one in KINDS))
    elif kind in BOUNDS:
        # Pydantic's name for the key of a dictionary's entry.
        param = param.removesuffix(".[key]")
        # As JSON writes them.
        bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
        words = BOUNDS[kind].format(**bounds).replace("False", "false").replace("True", "true")
    else:
        message = best["msg"].removeprefix("Value error, ").removesuffix(".")
        words = message[0].lower() + message[1:]
    return InvalidRequest(f"Invalid value for '{param}': {words}.", param=param)


def precision(details: ErrorDetails) -> tuple[int, bool, list[int]]:
    """A deeper error is more precise; a wrong type is the least precise thing to say about a member of a union."""
    location = details["loc"]
    return len(location), details["type"] not in KINDS, [step for step in location if isinstance(step, int)]
