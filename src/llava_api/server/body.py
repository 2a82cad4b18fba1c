"""Request body -> wire model: read up to a limit, parsed by orjson, checked by pydantic, refused in plain words."""

from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llava_api.errors import ErrorCode, InvalidRequest, RequestTooLarge, UnsupportedEncoding
from llava_api.limits.account import Account
from llava_api.telemetry.record import current

MAX_OBJECTS = 20_000
"""Objects and lists of one body, or their brackets in its texts: a context of 100,000 tokens has no room for more."""
MAX_VALUES = 500_000
MAX_FIELDS = 2_500
"""Of one object: twice what any that is meant well has, and each unknown one costs a complaint."""
MOST_COMPLAINTS = 2_000
"""Each takes ten microseconds to be read."""
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
        raise refusal_of(error, data) from error


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


@dataclass(frozen=True, slots=True)
class Complaint:
    details: ErrorDetails
    path: list[int | str]

    def rank(self) -> tuple[int, bool, list[int]]:
        """The deeper, the more precise; a wrong type is the least that can be said of a member of a union."""
        return len(self.path), self.details["type"] not in KINDS, [step for step in self.path if isinstance(step, int)]


def refusal_of(error: ValidationError, data: dict[str, Any]) -> InvalidRequest:
    """One sentence about the most precise of pydantic's complaints."""
    if error.error_count() > MOST_COMPLAINTS:
        return InvalidRequest("The request's body has so many faults that they are not looked at: send it well-formed.")
    found = [
        Complaint(entry, path_in(entry["loc"], data, entry["type"] == "missing"))
        for entry in error.errors(include_url=False)
    ]
    best = max(found, key=Complaint.rank)
    details, path = best.details, best.path
    param = written(path)
    if details["type"].startswith("union_tag"):
        # Pydantic names the object; what is wrong in it is the field that tells its kind.
        param = written([*path, details["ctx"]["discriminator"].strip("'")])
        if details["type"] == "union_tag_not_found":
            return missing(param)
        return InvalidRequest(f"Invalid value for '{param}': it must be {one_of(details)}.", param=param)
    if details["type"] == "refused":
        param = written([*path, details["ctx"]["field"]])
        return InvalidRequest(details["ctx"]["reason"], param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    if details["type"] == "extra_forbidden":
        return InvalidRequest(
            f"Unrecognized request argument supplied: {param}", param=param, code=ErrorCode.UNKNOWN_PARAMETER
        )
    if details["type"] == "missing":
        return missing(param)
    if details["type"] in KINDS:
        here = [other.details["type"] for other in found if other.path == path]
        kinds = " or ".join(dict.fromkeys(KINDS[kind] for kind in here if kind in KINDS))
        return InvalidRequest(f"Invalid value for '{param}': it must be {kinds}.", param=param)
    return InvalidRequest(f"Invalid value for '{param}': {reason(details)}.", param=param)


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code=ErrorCode.MISSING_REQUIRED_PARAMETER
    )


def one_of(details: ErrorDetails) -> str:
    """``'a', 'b'`` -> ``'a' or 'b'``."""
    return " or ".join(details["ctx"]["expected_tags"].rsplit(", ", 1))


def reason(details: ErrorDetails) -> str:
    """What was wanted, without echoing a value: our words, else pydantic's without their full stop."""
    words = BOUNDS.get(details["type"])
    if words is not None:
        # JSON's names.
        return words.format(**details["ctx"]).replace("False", "false").replace("True", "true")
    message = details["msg"].removeprefix("Value error, ").removesuffix(".")
    return message[0].lower() + message[1:]


def path_in(location: tuple[int | str, ...], data: object, missing: bool = False) -> list[int | str]:
    """A pydantic location without the names of union members: only steps that exist in the data, or are ``missing``."""
    path: list[int | str] = []
    here: object = data
    told_apart: object = None
    for index, step in enumerate(location):
        rest = location[index + 1 :]
        if isinstance(here, dict) and here is not told_apart and is_tag(step, here, rest, missing):
            told_apart = here
            continue
        if isinstance(here, dict) and step in here:  # noqa: SIM114
            here = here[step]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif not rest and isinstance(here, dict) and not names_a_type(step):
            pass
        else:
            continue
        path.append(step)
    return path


def is_tag(step: int | str, here: dict[str, Any], rest: tuple[int | str, ...], missing: bool) -> bool:
    """Whether a step is the union's name for this kind of object; a field may be called the same, as in a tool's
    ``{"type": "function", "function": {...}}``."""
    if step not in (here.get("type"), here.get("role")):
        return False
    if not rest:
        return not missing
    inside = here.get(str(step))
    if missing and isinstance(inside, dict):
        # What is missing is not what stands there.
        return rest[0] in inside or rest[0] == step
    return step not in here or rest[0] == step or rest[0] in here


def names_a_type(step: int | str) -> bool:
    """Whether a step of a location is pydantic's name for a member of a union, as list[constrained-str] or TextPart."""
    if not isinstance(step, str):
        return False
    return not step.isidentifier() or step[0].isupper() or step in ("str", "int", "float", "bool", "list", "dict")


def written(path: list[int | str]) -> str:
    """``["messages", 0, "content"]`` -> ``messages[0].content``."""
    text = ""
    for step in path:
        if isinstance(step, str) and len(step) > MAX_SHOWN:
            step = f"{step[:MAX_SHOWN]}..."
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
