"""Base classes of the objects of requests and replies, and the reply of every error."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    RootModel,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from llava_api.errors import ApiError
from llava_api.protocol.refused import changes_nothing

MAX_ERRORS = 500
"""Most errors of one body that are looked at. Each takes about ten microseconds."""


class WireObject(BaseModel):
    model_config = ConfigDict(strict=True, use_attribute_docstrings=True, serialize_by_alias=True)


class Listed(WireObject):
    """What lists name by its id."""

    id: str


Item = TypeVar("Item", bound=Listed)


class Page(WireObject, Generic[Item]):
    """A part of a list, which ``after`` goes on from."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[Item], has_more: bool) -> Self:
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


class PlainText(RootModel[str]):
    """A reply of one sentence that is no JSON."""

    media_type: ClassVar[str] = "text/plain"


class ErrorShape(WireObject):
    """The reply of every error in one API."""

    @classmethod
    def of(cls, error: ApiError, request_id: str) -> Self:
        raise NotImplementedError


class NamedEvent(WireObject):
    """One event of a stream; ``type`` is also the event's name."""

    last_events: ClassVar[str]
    """What a stream may end with, in words."""
    type: str


class ErrorObject(WireObject):
    message: str
    """What is wrong and what to do."""
    type: str
    """invalid_request_error or server_error."""
    param: str | None
    """The field to correct, for example messages[0].content[1].image_url."""
    code: str | None


class ErrorReply(ErrorShape):
    error: ErrorObject

    @classmethod
    def of(cls, error: ApiError, request_id: str) -> Self:
        return cls(error=ErrorObject(message=error.message, type=error.type, param=error.param, code=error.code))


@dataclass(slots=True)
class Unread:
    """The context of a validation: whether any object has fields that are not read."""

    found: bool = False


class RequestObject(WireObject):
    """Null means: not given, and so does an empty text for a number or an object.

    Fields that are not read are noted in the validation's ``Unread``, if it has one.
    """

    # Not strict, because vLLM's server, and so its clients' users, take "0.7" for a number and 24.0 for an integer.
    model_config = ConfigDict(strict=False, allow_inf_nan=False)
    refused: ClassVar[Mapping[str, str]] = {}
    """Known field that is not supported -> one sentence: why, and what to do."""
    ignored: ClassVar[Mapping[str, str]] = {}
    """Known field without effect, which ``--strict-fields`` refuses -> the sentence."""
    extensions: ClassVar[Collection[str]] = ()
    """Inherited fields that the API does not have here."""
    image_place: ClassVar[str] = "in a message's content, each as a part of its own"
    """Where the API has images, for errors."""

    @model_validator(mode="before")
    @classmethod
    def without_null_and_refused(cls, data: Any, info: ValidationInfo) -> Any:
        """A refused field may have a value that asks for nothing, or for what the server does anyway."""
        if not isinstance(data, dict):
            return data
        for name in data.keys() & cls.refused.keys():
            if not changes_nothing(name, data[name]):
                raise refused_field(name, cls.refused[name])
        if isinstance(info.context, Unread) and not data.keys() <= read_names(cls).keys():
            info.context.found = True
        no_text, objects = names_without(cls)
        return {
            name: value
            for name, value in data.items()
            if value is not None
            and name not in cls.refused
            and not (value == "" and name in no_text)
            and not (value == {} and name in objects)
        }


def refused_field(name: str, sentence: str) -> ValidationError:
    refused = PydanticCustomError("refused", "{reason}", {"reason": sentence})
    return ValidationError.from_exception_data(name, [{"type": refused, "loc": (name,), "input": None}])


@cache
def read_names(kind: type[RequestObject]) -> dict[str, str]:
    """Name on the wire of each field that is read -> its name in Python."""
    return {field.alias or name: name for name, field in kind.model_fields.items()}


@cache
def names_without(kind: type[RequestObject]) -> tuple[set[str], set[str]]:
    """Optional fields for which an empty text, and those for which an empty object too, is as good as null."""
    no_text, objects = set(), set()
    for name, own_name in read_names(kind).items():
        field = kind.model_fields[own_name]
        kinds = kinds_of(field.annotation)
        if not field.is_required() and str not in kinds:
            no_text.add(name)
            if any(issubclass(one, RequestObject) for one in kinds):
                objects.add(name)
    return no_text, objects


def kinds_of(annotation: Any) -> set[type]:
    """The classes of a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(kinds_of, get_args(annotation)))
    kind = origin or annotation
    return {kind} if isinstance(kind, type) else set()


Ignored = Annotated[None, BeforeValidator(lambda _: None), WithJsonSchema({})]
"""A field that takes any value and discards it."""


Value = TypeVar("Value")
PhpObject = Annotated[Value, BeforeValidator(lambda value: {} if value == [] else value)]
"""An object that may be written as ``[]``, as PHP writes an empty one."""


def written_as(form: str, elsewhere: Callable[[Any], bool]) -> BeforeValidator:
    """Annotates a field, to name its ``form`` to a client that writes it as another API does.

    ``elsewhere``: whether a value has the form of another API.
    """

    def check(given: Any) -> Any:
        if elsewhere(given):
            raise PydanticCustomError("form", "write it as {form}", {"form": form})
        return given

    return BeforeValidator(check)


def is_none(value: object) -> bool:
    """For ``exclude_if``: fields that the API leaves out instead of sending null."""
    return value is None


def validate_with_json_paths(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:
            raise PydanticCustomError("too_many_errors", "it has too many errors") from error
        found = error.errors(include_url=False, include_input=False)
        raise ValidationError.from_exception_data(error.title, [with_json_path(each) for each in found]) from error


def with_json_path(details: ErrorDetails) -> InitErrorDetails:
    kind, message, context, location = details["type"], details["msg"], details.get("ctx", {}), details["loc"][1:]
    if not details["loc"] and kind.startswith("union_tag"):
        # Pydantic reports the whole object, but only its discriminator is missing or wrong.
        location = (context["discriminator"].strip("'"),)
        kind = "missing" if kind == "union_tag_not_found" else "literal_error"
        context = {"expected": " or ".join(context.get("expected_tags", "").rsplit(", ", 1))}
    return {"type": PydanticCustomError(kind, message, context), "loc": location, "input": None}


JSON_PATHS = WrapValidator(validate_with_json_paths)
"""Annotates a union, so that the locations of its errors are paths in the caller's JSON.

Pydantic's own locations also have the names of unions' members, as in ``messages.0.user.content.list[...].0``.
"""
