"""``POST /v1/responses``: the request."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llava_api.protocol.chat import Metadata
from llava_api.protocol.formats import FlatResponseFormat
from llava_api.protocol.messages import Content, ContentPart, HasContent
from llava_api.protocol.refused import NOT_LLAVA, VLLM, VLLM_COMPLETIONS, VLLM_IGNORED, WITHOUT_EFFECT
from llava_api.protocol.sampling import MaxTokens, ResponseStreamOptions, SamplingRequest
from llava_api.protocol.tools import MAX_TOOLS, Arguments, FlatToolChoice, GivenFlatTool, json_text
from llava_api.protocol.wire import JSON_PATHS, Ignored, RequestObject

ItemStatus = Literal["in_progress", "completed", "incomplete"]
STATUSES = get_args(ItemStatus)


class Item(RequestObject):
    """Fields of all items. The model is not shown them."""

    id: str | None = None
    status: Annotated[ItemStatus | None, BeforeValidator(lambda given: given if given in STATUSES else None)] = None


class MessageItem(Item, HasContent):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content[ContentPart]
    """If an assistant's message is the last and its status is not completed, the model continues it."""
    phase: str | None = None
    """Accepted and not used."""


class CallItem(Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Arguments = "{}"
    """JSON, or the object itself."""
    parsed_arguments: Ignored = None
    """Accepted and not used: the openai client's parsed form of the arguments."""


def output_text(given: object) -> object:
    return json_text(given) if isinstance(given, dict) else given


class CallOutputItem(Item):
    """What the function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[Content[ContentPart], BeforeValidator(output_text)] = ""
    """A text, parts, or an object, which the model is shown as JSON."""


class ItemReference(RequestObject):
    """Stands for the item of this id, of any stored response; needs a server with --response-store-bytes."""

    type: Literal["item_reference"] = "item_reference"
    id: str
    status: Ignored = None


SkippedType = Literal["reasoning", "web_search_call", "file_search_call"]
SKIPPED = get_args(SkippedType)


class SkippedItem(RequestObject):
    """What another model thought, or looked up with OpenAI's own tools. LLaVA is not shown it."""

    type: SkippedType
    id: Ignored = None
    status: Ignored = None
    summary: Ignored = None
    content: Ignored = None
    encrypted_content: Ignored = None
    action: Ignored = None
    queries: Ignored = None
    results: Ignored = None


def kind_of(item: Any) -> str | None:
    given = item if isinstance(item, dict) else getattr(item, "__dict__", {})
    unnamed = "item_reference" if "id" in given and "role" not in given else "message"
    kind = given.get("type") or unnamed
    return "skipped" if kind in SKIPPED else kind if isinstance(kind, str) else None


def user_item(item: Any) -> Any:
    """A text among the items is a user's."""
    return {"role": "user", "content": item} if isinstance(item, str) else item


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[SkippedItem, Tag("skipped")],
    Discriminator(
        kind_of,
        custom_error_type="item_kind",
        custom_error_message="an item is a message, a function_call, a function_call_output or an item_reference",
    ),
    JSON_PATHS,
    BeforeValidator(user_item),
]


class TextOptions(RequestObject):
    ignored: ClassVar = {"verbosity": WITHOUT_EFFECT["verbosity"]}
    format: FlatResponseFormat | None = None


class ResponseRequest(SamplingRequest):
    extensions: ClassVar = {"frequency_penalty", "logit_bias", "presence_penalty", "seed", "stop"}
    refused: ClassVar = {
        "moderation": NOT_LLAVA["moderation"],
        **VLLM,
        **VLLM_COMPLETIONS,
        "background": "Responses are not generated in the background: leave background out.",
        "conversation": "This server stores no conversations: send the earlier items in input.",
        "image": "Images are not compressed in the context: leave image out.",
        "prompt": "This server stores no prompt templates: send instructions and input.",
        "response_format": "response_format is called text.format here.",
        "logprobs": "logprobs is called top_logprobs here.",
        "messages": "messages belong to /v1/chat/completions: send input here.",
    }
    ignored: ClassVar = {
        **{name: WITHOUT_EFFECT[name] for name in ("prompt_cache_options", "prompt_cache_retention")},
        **VLLM_IGNORED,
        **{name: f"{name} is called max_output_tokens here." for name in ("max_tokens", "max_completion_tokens")},
        "access_programs": "access_programs belongs to OpenAI's own service: leave it out.",
        "context_management": "This server does not shorten conversations: leave context_management out.",
        "max_tool_calls": "max_tool_calls limits calls of built-in tools, and this server has none: leave it out.",
        "reasoning": "LLaVA does not reason before it answers: leave reasoning out.",
    }

    input: Annotated[str | Annotated[list[InputItem], Field(fail_fast=True)], JSON_PATHS] | None = None
    """A user's text, or items: messages with texts and images, function calls and what they returned. Only a request
    with instructions or previous_response_id may leave it out."""
    instructions: str | None = None
    """The system text. previous_response_id does not bring it back."""
    previous_response_id: str | None = None
    """Continue the conversation after this response; needs a server with --response-store-bytes."""
    store: bool | None = None
    """Store the response; default: true. Without --response-store-bytes nothing is stored, and the reply says false."""
    max_output_tokens: MaxTokens | None = None
    """Most tokens of the answer; more than fit into the context, 0, -1, -2 and the default: as many as fit."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Send each token's log-probability, and this number of most likely tokens at each position."""
    include: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=32)
    """message.output_text.logprobs: send each token's log-probability; other values have no effect."""
    text: TextOptions | None = None
    """The format of the answer."""
    tools: list[GivenFlatTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; the system text describes them to it."""
    tool_choice: FlatToolChoice | None = None
    """none, auto (the default), required, one function, or some of them (allowed_tools)."""
    parallel_tool_calls: bool | None = None
    """Allow several calls in one answer; default true."""
    stream_options: ResponseStreamOptions | None = None
    """Has no effect without ``stream``."""
    truncation: Literal["auto", "disabled"] | None = None
    """Accepted; nothing is left out of a request, and one that does not fit into the context is rejected."""
    service_tier: Ignored = None
    """Accepted; every request is served as ``default``, and the reply says so."""
    user: Annotated[
        Annotated[str, Field(max_length=512)] | None,
        BeforeValidator(lambda given: given if isinstance(given, str) else None),
    ] = None
    """Accepted and sent back, if it is a string."""
    safety_identifier: str | None = Field(None, max_length=64)
    """Accepted and sent back."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """Accepted and sent back: prompts with the same beginning are found without it."""
    metadata: Metadata | None = None
    """Accepted and sent back."""
