"""Fields of a request that have no effect: noted in its record, or refused if they hold an image or by setting."""

from typing import Any

from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.protocol.refused import KNOWN_STRANGERS, changes_nothing
from llava_api.protocol.wire import RequestObject, read_names
from llava_api.telemetry.log_lines import cut
from llava_api.telemetry.record import RequestRecord

MAX_LOOKED_AT = 5_000
"""Most texts, lists and objects of unknown fields that are searched for images. That takes a few milliseconds."""

IMAGE_NAMES = frozenset(
    f"{name}{plural}"
    for name in ("image", "imageurl", "imagedata", "imagefile", "imagebase64", "inputimage", "picture", "photo")
    for plural in ("", "s")
)
"""In lower case, without underscores and hyphens."""
IMAGE_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""Beginnings of ``data:`` URLs, and of PNG, JPEG, GIF and WebP files in base64."""
CONTENT_NAMES = frozenset({"url", "data", "base64", "content", "path"})

Path = tuple[str | int, ...]


def check_unread(request: RequestObject, data: dict[str, Any], strict: bool, record: RequestRecord) -> None:
    """Note what is ignored; ``data`` is the body that ``request`` was made of. Raises InvalidRequest."""
    UnreadFields(strict, record, request.image_place).collect(request, data, "", ())


class UnreadFields:
    """The unread fields of one request. ``strict``: refuse the first of them. ``image_place``: where images belong."""

    def __init__(self, strict: bool, record: RequestRecord, image_place: str) -> None:
        self.strict = strict
        self.remedy = f" Send images {image_place}."
        self.record = record
        self.left = MAX_LOOKED_AT

    def collect(self, made: object, data: object, prefix: str, path: Path) -> None:
        """``prefix`` is ``path`` as a text without indexes. Raises InvalidRequest."""
        if isinstance(made, list) and isinstance(data, list):
            for index, (inner, inner_data) in enumerate(zip(made, data, strict=False)):
                self.collect(inner, inner_data, prefix, (*path, index))
        elif isinstance(made, RequestObject) and isinstance(data, dict):
            kind = type(made)
            read = read_names(kind)
            for name, value in data.items():
                if name in read:
                    if isinstance(value, dict | list):
                        self.collect(getattr(made, read[name]), value, f"{prefix}{name}.", (*path, name))
                elif value is not None and name not in kind.refused:
                    self.add(name, value, kind.ignored.get(name), prefix, path)

    def add(self, name: str, value: object, sentence: str | None, prefix: str, path: Path) -> None:
        """``sentence``: about a known field, None for an unknown one."""
        if sentence is None and self.holds_image(name, value):
            raise unrecognized((*path, name), self.remedy)
        if sentence is not None and changes_nothing(name, value):
            return
        if self.strict:
            raise unrecognized((*path, name)) if sentence is None else unsupported((*path, name), sentence)
        self.record.ignore(prefix + cut(name), KNOWN_STRANGERS)

    def holds_image(self, name: str, value: object) -> bool:
        """Raises InvalidRequest if there is too much to look at."""
        waiting = [(name, value)]
        while waiting:
            name, value = waiting.pop()
            if not value or not isinstance(value, str | dict | list):
                continue
            self.left -= 1
            if self.left < 0:
                raise InvalidRequest("The request's body has too many fields that this server does not know.")
            if name.lower().replace("_", "").replace("-", "") in IMAGE_NAMES:
                return True
            if isinstance(value, str):
                if value.startswith(IMAGE_STARTS) or (name == "type" and value.replace("_", "") in IMAGE_NAMES):
                    return True
            elif isinstance(value, list):
                waiting += [(name, inner) for inner in value if isinstance(inner, str | dict | list)]
            elif is_image_file(value):
                return True
            else:
                waiting += value.items()
        return False


def is_image_file(value: dict[str, object]) -> bool:
    """Whether an object has an image's MIME type beside its content, as the parts of some front ends do."""
    return not CONTENT_NAMES.isdisjoint(value) and any(
        isinstance(inner, str) and inner.startswith("image/") for inner in value.values()
    )


def unrecognized(path: Path, remedy: str = "") -> InvalidRequest:
    param = json_path(path)
    message = f"Unrecognized request argument supplied: {param}{'.' if remedy else ''}{remedy}"
    return InvalidRequest(message, param=param, code=ErrorCode.UNKNOWN_PARAMETER)


def unsupported(path: Path, sentence: str) -> InvalidRequest:
    return InvalidRequest(sentence, param=json_path(path), code=ErrorCode.UNSUPPORTED_PARAMETER)


def json_path(location: Path) -> str:
    """``("messages", 0, "content")`` -> ``messages[0].content``."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{cut(step)}" if text else cut(step)
    return text
