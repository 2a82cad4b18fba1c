"""``multipart/form-data`` with one file, whose bytes are passed on as they come and never held as a whole."""

import logging
from collections.abc import AsyncIterable, AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llava_api.errors import InvalidRequest, RequestTooLarge

# It warns about each fault of a caller's form.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

FORM_BYTES = 65_536
"""Most bytes of a form besides its file: boundaries, headers and other fields."""
MAX_NAME = 255
"""Characters of a file's name that are kept: it is sent back in a header."""
NOT_A_FORM = "Send the file as multipart/form-data, with a field named file and one named purpose."
DAMAGED = "The form is damaged, or not whole: its last boundary is missing."


class Form:
    """Raises InvalidRequest if ``content_type`` is not that of a form. Read ``file_bytes`` before the rest."""

    def __init__(self, content_type: str, field: str = "file") -> None:
        """``field``: the file's."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest(NOT_A_FORM)
        self.field = field
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """None until the file has begun."""
        self.whole = False
        self.piece = bytearray()
        """Bytes of the file that have been parsed and not passed on."""
        self.header_name, self.header_value = bytearray(), bytearray()
        self.disposition = b""
        self.name = ""
        self.value = bytearray()
        self.in_file = False
        try:
            self.parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self.on_part_begin,
                    "on_header_begin": self.on_header_begin,
                    "on_header_field": lambda data, start, end: self.header_name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self.header_value.extend(data[start:end]),
                    "on_header_end": self.on_header_end,
                    "on_headers_finished": self.on_headers_finished,
                    "on_part_data": self.on_part_data,
                    "on_part_end": self.on_part_end,
                    "on_end": self.on_end,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(NOT_A_FORM) from error

    async def file_bytes(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Read the whole body; the other fields are complete when this ends. Raises InvalidRequest or a subclass."""
        others = 0
        async for part in body:
            try:
                self.parser.write(part)
            except FormParserError as error:
                raise InvalidRequest(DAMAGED) from error
            others += len(part) - len(self.piece)
            if others > FORM_BYTES:
                raise RequestTooLarge(f"The form has more than {FORM_BYTES} bytes besides its file: send less.")
            if self.piece:
                piece, self.piece = self.piece, bytearray()
                yield bytes(piece)
        if not self.whole:
            raise InvalidRequest(DAMAGED)

    def on_part_begin(self) -> None:
        self.disposition = b""
        self.value = bytearray()
        self.in_file = False

    def on_header_begin(self) -> None:
        self.header_name, self.header_value = bytearray(), bytearray()

    def on_header_end(self) -> None:
        if self.header_name.lower() == b"content-disposition":
            self.disposition = bytes(self.header_value)

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        self.name = text_of(options.get(b"name", b""))
        if not self.name or self.name in self.fields or (self.name == self.field and self.filename is not None):
            raise InvalidRequest(
                f"The form has a part without a name, or two with the same name: send one {self.field}."
            )
        self.in_file = self.name == self.field
        if self.in_file:
            self.filename = text_of(options.get(b"filename", b""))[:MAX_NAME] or "upload"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        (self.piece if self.in_file else self.value).extend(data[start:end])

    def on_part_end(self) -> None:
        if not self.in_file:
            self.fields[self.name] = text_of(self.value)

    def on_end(self) -> None:
        self.whole = True

    def data(self) -> dict[str, object]:
        """The fields as an object: ``expires_after[seconds]`` is a field of ``expires_after``, digits are a number."""
        made: dict[str, object] = {} if self.filename is None else {self.field: self.filename}
        for name, text in self.fields.items():
            value: object = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text
            outer, bracket, inner = name.partition("[")
            inside = made.setdefault(outer, {}) if bracket else made
            if not isinstance(inside, dict):
                raise InvalidRequest(
                    f"The form has {outer} as a whole and in parts: send only one of them.", param=outer
                )
            inside[inner.removesuffix("]") if bracket else name] = value
        return made


def text_of(data: bytes | bytearray) -> str:
    """Raises InvalidRequest."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("The form's fields and names must be UTF-8.") from error
