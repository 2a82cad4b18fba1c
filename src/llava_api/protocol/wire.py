"""Base classes of the objects of requests and replies, and the reply of every error."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from llava_api.errors import ApiError

MAX_ERRORS = 500
"""Most errors of one body that are looked at. Each takes about ten microseconds."""


class WireObject(BaseModel):
    model_config = ConfigDict(strict=True, use_attribute_docstrings=True, serialize_by_alias=True)


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


class RequestObject(WireObject):
    """Unknown fields are errors, so that nothing a caller sends is silently ignored. Null means: not given."""

    model_config = ConfigDict(extra="forbid")
    refused: ClassVar[Mapping[str, str]] = {}
    """Known field that is not supported -> one sentence: why, and what to do."""

    @model_validator(mode="before")
    @classmethod
    def without_null_and_refused(cls, data: Any) -> Any:
        """A refused field may be false or empty, like null: many clients send that for fields they do not use."""
        if not isinstance(data, dict):
            return data
        for name in data.keys() & cls.refused.keys():
            value = data[name]
            if value is not None and value is not False and value not in ([], {}, ""):
                refused = PydanticCustomError("refused", "{reason}", {"reason": cls.refused[name]})
                raise ValidationError.from_exception_data(name, [{"type": refused, "loc": (name,), "input": value}])
        return {name: value for name, value in data.items() if value is not None and name not in cls.refused}


Ignored = Annotated[None, BeforeValidator(lambda _: None), WithJsonSchema({})]
"""A field that takes any value and discards it."""


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
