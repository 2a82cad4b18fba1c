"""Request body -> wire model: read up to a limit, parsed by orjson, checked by pydantic, refused in plain words."""

from typing import TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llava_api.errors import ErrorCode, InvalidRequest, RequestTooLarge, UnsupportedEncoding
from llava_api.limits.account import Account
from llava_api.protocol.wire import MAX_ERRORS
from llava_api.telemetry.record import current

MAX_OBJECTS = 20_000
"""Objects and lists of one body, or their brackets in its texts: a context of 100,000 tokens has no room for more."""
MAX_VALUES = 500_000
MAX_FIELDS = 2_500
"""Of one object: twice what any that is meant well has, and each unknown one costs a complaint."""
MAX_SHOWN = 64
"""Letters of one field's name in a message."""
COPIES = 2
"""Of a text with pictures that are in memory: itself, and their files."""
COPIES_GROWN = 3
"""The same of a body, which grows as it comes, and leaves holes behind that are too small for it."""
FIRST_BYTES = 1_000_000
"""Room for so many is made with a body's first byte, then for twice what has come: an announcement alone costs nobody
anything, and a body of a few megabytes is moved once or twice."""
MAX_TEXT_BYTES = 8_000_000
"""Of a body besides the base64 of its pictures: ten contexts of 100,000 tokens."""
BASE64 = b"base64,"
Model = TypeVar("Model", bound=BaseModel)


async def read_request(request: Request, model: type[Model], max_body_bytes: int, account: Account) -> Model:
    """Raises InvalidRequest and its kinds, and Busy."""
    wanted = parse(await read_body(request, max_body_bytes, account), model)
    record = current()
    record.model, record.stream = getattr(wanted, "model", None), bool(getattr(wanted, "stream", False))
    return wanted


async def read_body(request: Request, max_body_bytes: int, account: Account) -> bytearray:
    """Raises UnsupportedEncoding; RequestTooLarge as soon as the limit is passed, whatever Content-Length said; Busy.

    ``account`` is charged for memory as it is allocated. A body that cannot fit now is refused before it is read.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedEncoding("Send the request's body as it is: this server unpacks no Content-Encoding.")
    refusal = RequestTooLarge(f"The request is larger than the {max_body_bytes} bytes this server takes.")
    announced = request.headers.get("content-length", "0")
    expected = int(announced) if announced.isdigit() else 0
    if expected > max_body_bytes:
        raise refusal
    account.check(COPIES_GROWN * expected)
    body = bytearray()
    size = 0
    async for part in request.stream():
        end = size + len(part)
        if end > max_body_bytes:
            raise refusal
        if end > len(body):
            room = max(end, min(expected, max(FIRST_BYTES, 2 * end)))
            account.take(COPIES_GROWN * (room - len(body)))
            if expected:
                body += bytes(room - len(body))
        body[size:end] = part
        size = end
    del body[size:]
    return body


def parse(body: bytes | bytearray, model: type[Model]) -> Model:
    """Raises InvalidRequest that names the first thing to mend."""
    # Before a million small objects are made and each of them is found wrong. Base64 has none of these letters.
    text = besides_pictures(body)
    commas = text.count(b",")
    if text.count(b"{") + text.count(b"[") > MAX_OBJECTS or commas > MAX_VALUES:
        raise InvalidRequest("The request's body has too many parts: send fewer messages, or shorter ones.")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("The request's body is not valid JSON.", code=ErrorCode.INVALID_JSON) from error
    if not isinstance(data, dict):
        raise InvalidRequest("The request's body must be a JSON object.", code=ErrorCode.INVALID_JSON)
    if commas > MAX_FIELDS:
        check_fields(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise refusal_of(error) from error


def besides_pictures(body: bytes | bytearray) -> bytes:
    """A body without the base64 of its data: URLs. Raises InvalidRequest where that is more than MAX_TEXT_BYTES."""
    pieces: list[bytes] = []
    here, left = 0, MAX_TEXT_BYTES
    while 0 <= here < len(body):
        found = body.find(BASE64, here, here + left)
        end = len(body) if found < 0 else found + len(BASE64)
        left -= end - here
        if left < 0:
            raise InvalidRequest(
                f"The request's body has more than {MAX_TEXT_BYTES} bytes besides its pictures' base64: send less."
            )
        pieces.append(bytes(body[here:end]))
        here = body.find(b'"', end)
    return b"".join(pieces)


def check_fields(data: object) -> None:
    """Raises InvalidRequest where an object has more fields than any is meant to have."""
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
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}
"""pydantic's complaints about a wrong type -> what was wanted."""
BOUNDS = {
    "too_short": "it must have {min_length} or more",
    "too_long": "it may have up to {max_length}",
    "string_too_short": "it must have {min_length} characters or more",
    "string_too_long": "it may have up to {max_length} characters",
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
    if kind == "extra_forbidden":
        unknown = f"Unrecognized request argument supplied: {param}"
        return InvalidRequest(unknown, param=param, code=ErrorCode.UNKNOWN_PARAMETER)
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
        words = BOUNDS[kind].format(**context).replace("False", "false").replace("True", "true")
    else:
        message = best["msg"].removeprefix("Value error, ").removesuffix(".")
        words = message[0].lower() + message[1:]
    return InvalidRequest(f"Invalid value for '{param}': {words}.", param=param)


def precision(details: ErrorDetails) -> tuple[int, bool, list[int]]:
    """A deeper error is more precise; a wrong type is the least precise thing to say about a member of a union."""
    location = details["loc"]
    return len(location), details["type"] not in KINDS, [step for step in location if isinstance(step, int)]


def json_path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "content")`` -> ``messages[0].content``."""
    text = ""
    for step in location:
        if isinstance(step, str) and len(step) > MAX_SHOWN:
            step = f"{step[:MAX_SHOWN]}..."
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
