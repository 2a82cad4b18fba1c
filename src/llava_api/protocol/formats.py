"""The form of an answer: free text, any JSON object, or JSON after a schema."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from llava_api.protocol.tools import Name
from llava_api.protocol.wire import JSON_PATHS, Given


class TextFormat(Given):
    type: Literal["text"]


class JsonObjectFormat(Given):
    type: Literal["json_object"]


class JsonSchema(Given):
    # "schema" is the wire's name; a pydantic model has a method of that name already.
    model_config = ConfigDict(validate_by_alias=True)

    name: Name
    """Not shown to the model."""
    description: str | None = None
    """Not shown to the model."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """JSON Schema of the answer; default: any object."""
    strict: bool | None = None
    """The answer fits the schema either way."""


class JsonSchemaFormat(Given):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type"), JSON_PATHS]
