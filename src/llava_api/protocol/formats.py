"""Formats of an answer: text, any JSON object, or JSON that fits a schema."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, Json

from llava_api.protocol.refused import GRAMMARS, sentences
from llava_api.protocol.wire import JSON_PATHS, RequestObject, is_none


class TextFormat(RequestObject):
    type: Literal["text"]


class JsonObjectFormat(RequestObject):
    model_config = ConfigDict(validate_by_alias=True)

    type: Literal["json_object", "json"]
    """json: Hugging Face's name."""
    schema_: dict[str, Any] | None = Field(None, alias="schema", exclude_if=is_none)
    """JSON Schema of the answer; default: any object. An extension, as llama.cpp's server has it."""
    value: dict[str, Any] | None = Field(None, exclude_if=is_none)
    """The same by Hugging Face's name. An extension."""


class JsonSchema(RequestObject):
    # The field is called "schema", but a pydantic model has a method of that name.
    model_config = ConfigDict(validate_by_alias=True)

    name: str = Field("answer", max_length=256)
    """Not shown to the model."""
    description: str | None = Field(default=None, exclude_if=is_none)
    """Not shown to the model."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """JSON Schema of the answer; default: any object."""
    strict: bool | None = None
    """Refuse a schema with keywords that cannot be enforced, instead of leaving them out."""


class JsonSchemaFormat(RequestObject):
    model_config = ConfigDict(validate_by_alias=True)

    type: Literal["json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """JSON Schema of the answer, without ``json_schema`` around it. An extension, as llama.cpp's server has it."""
    value: JsonSchema | None = None
    """``json_schema`` by Hugging Face's name. An extension."""


class FlatJsonSchemaFormat(JsonSchema):
    """The form of the Responses API, whose replies have all of its fields."""

    type: Literal["json_schema"]
    description: str | None = None
    """Not shown to the model."""
    schema_: dict[str, Any] = Field(alias="schema")
    """JSON Schema of the answer."""
    strict: bool = False
    """Refuse a schema with keywords that cannot be enforced, instead of leaving them out."""


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type"), JSON_PATHS]
FlatResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | FlatJsonSchemaFormat, Field(discriminator="type"), JSON_PATHS
]

ChoiceTexts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=1, max_length=1000, fail_fast=True)
]
Regex = Annotated[str, Field(min_length=1, max_length=512)]
SchemaOrText = Annotated[dict[str, Any] | Json[dict[str, Any]], JSON_PATHS]


class StructuredOutputs(RequestObject):
    """vLLM's forms of an answer, one of which must be given."""

    model_config = ConfigDict(validate_by_alias=True)
    refused: ClassVar = sentences((GRAMMARS, ("grammar", "structural_tag")))

    choice: ChoiceTexts | None = None
    """The answer is one of these texts, without quotes. With ``logprobs`` the reply has the probability of each."""
    regex: Regex | None = None
    """The whole answer matches this regular expression, in the syntax of Rust."""
    json_: SchemaOrText | None = Field(None, alias="json")
    """The answer is JSON of this schema, which may be written as a text."""
    json_object: bool | None = None
    """The answer is a JSON object."""
