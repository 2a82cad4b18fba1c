"""What every wire object is: strict about types and names, so that nothing a caller says is dropped in silence."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError


def absent(value: object) -> bool:
    """For fields that the API leaves out rather than sends as null."""
    return value is None


class Wire(BaseModel):
    """Unknown names and wrong types are errors; the docstring under a field describes it in the OpenAPI document."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, serialize_by_alias=True)


Unused = Annotated[None, BeforeValidator(lambda _: None), WithJsonSchema({})]
"""A field that may be anything, of which nothing is kept."""


class Given(Wire):
    """An object of a request: null means that a field is not given, and some fields are known and refused by name."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Field -> why it is refused and what to do, as one sentence."""

    @model_validator(mode="before")
    @classmethod
    def only_what_is_given(cls, data: Any) -> Any:
        """False and empty values of a refused field mean that it is not wanted, like null: many clients send them."""
        if not isinstance(data, dict):
            return data
        for name in data.keys() & cls.refused.keys():
            value = data[name]
            if value is not None and value is not False and value not in ([], {}, ""):
                raise PydanticCustomError("refused", "{reason}", {"field": name, "reason": cls.refused[name]})
        return {name: value for name, value in data.items() if value is not None and name not in cls.refused}
