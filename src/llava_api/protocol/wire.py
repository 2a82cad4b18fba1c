"""Base classes of all wire objects. They are strict about types and names, so that no field is silently ignored."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

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

MAX_ERRORS = 500
"""Errors of one body that are looked at. Each takes about ten microseconds."""


def absent(value: object) -> bool:
    """For fields that the API leaves out if there is no value, instead of sending null."""
    return value is None


class Wire(BaseModel):
    """Unknown names and wrong types are errors; the docstring under a field describes it in the OpenAPI document."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, serialize_by_alias=True)


Unused = Annotated[None, BeforeValidator(lambda _: None), WithJsonSchema({})]
"""A field that takes any value and discards it."""


class Given(Wire):
    """An object of a request: null means that a field is not given, and some known fields are refused by name."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Field -> one sentence: why it is refused and what to do."""

    @model_validator(mode="before")
    @classmethod
    def only_what_is_given(cls, data: Any) -> Any:
        """A refused field may be false or empty, like null: many clients send that for fields they do not use."""
        if not isinstance(data, dict):
            return data
        for name in data.keys() & cls.refused.keys():
            value = data[name]
            if value is not None and value is not False and value not in ([], {}, ""):
                refused = PydanticCustomError("refused", "{reason}", {"reason": cls.refused[name]})
                raise ValidationError.from_exception_data(
                    cls.__name__, [{"type": refused, "loc": (name,), "input": value}]
                )
        return {name: value for name, value in data.items() if value is not None and name not in cls.refused}


def locate_in_body(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:
            raise PydanticCustomError("too_many_errors", "it has too many errors") from error
        found = error.errors(include_url=False, include_input=False)
        raise ValidationError.from_exception_data(error.title, [located(details) for details in found]) from error


def located(details: ErrorDetails) -> InitErrorDetails:
    kind, message, context, location = details["type"], details["msg"], details.get("ctx", {}), details["loc"][1:]
    if not details["loc"] and kind.startswith("union_tag"):
        # Pydantic reports the object, but the field that names the object's kind is missing or wrong.
        location = (context["discriminator"].strip("'"),)
        kind = "missing" if kind == "union_tag_not_found" else "literal_error"
        context = {"expected": " or ".join(context.get("expected_tags", "").rsplit(", ", 1))}
    return {"type": PydanticCustomError(kind, message, context), "loc": location, "input": None}


JSON_PATHS = WrapValidator(locate_in_body)
"""Annotates a union, so that the locations of its errors are paths in the caller's JSON.

Pydantic puts the names of unions' members into a location, as in ``messages.0.user.content.list[...].0``.
"""
