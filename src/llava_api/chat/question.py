"""A request of any chat endpoint: a conversation, and how it is to be answered."""

from dataclasses import dataclass, replace

from llava_api.chat.conversation import Conversation, read_messages
from llava_api.chat.forms import Form, read_form
from llava_api.chat.grammar import ANY_OBJECT, differs_from_calls, json_grammar, tools_grammar
from llava_api.chat.model import ServedModel
from llava_api.chat.sampling import (
    Length,
    choices_of,
    prompt_logprobs_of,
    read_sampling,
    upper_bound,
    with_grammar,
)
from llava_api.chat.schema import ReadSchema, check_special_texts, read_schema
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.engine.base import Sampling
from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.formats import FlatJsonSchemaFormat, JsonObjectFormat, JsonSchemaFormat, TextFormat


@dataclass(frozen=True, slots=True)
class Question:
    model: str
    """A served name."""
    conversation: Conversation
    sampling: Sampling
    length: Length
    call_names: tuple[str, ...] = ()
    """Functions that the answer may call; empty for none."""
    form: Form | None = None
    """What an answer that calls nothing must be."""
    exact: bool = False
    """Whether an answer's leading spaces are part of it."""
    choices: int = 1
    schemas: tuple[ReadSchema, ...] = ()
    """The schemas that the answer's grammar is made of."""


def with_format(question: Question, model: ServedModel, schema: ReadSchema | None, toolbox: Toolbox | None) -> Question:
    """Have the answer be JSON of ``schema``, calls, or what the model chooses among them and free text.

    Raises InvalidRequest if the format cannot be combined with the rest of the question.
    """
    if toolbox is None and schema is None:
        return question
    schemas = () if toolbox is None else tuple(tool.schema for tool in toolbox.tools)
    if schema is not None:
        schemas = (schema, *schemas)
    for one in schemas:
        check_special_texts(one, model.tokenizer.special_ids)
    free_text = toolbox is not None and toolbox.mode == "auto" and schema is None
    # JSON and calls are whole answers, and words that have begun go on in words.
    conversation = question.conversation if free_text else question.conversation.answered()
    if toolbox is not None:
        conversation = conversation.with_system(model.family.default_system, toolbox.description())
    question = replace(question, conversation=conversation)
    if conversation.continues:
        return question
    question = replace(question, schemas=schemas, form=None if schema is None else Form(schema))
    if toolbox is None:
        assert schema is not None
        sampling = with_grammar(question.sampling, json_grammar(schema.kept), model, texts_too=False)
        return replace(question, sampling=sampling)
    answer = None if schema is None else schema.kept
    if schema is not None and toolbox.mode == "auto" and not differs_from_calls(schema.kept):
        raise InvalidRequest(
            "If the model may call a function or answer in JSON, the JSON must not look like a call: give a "
            "json_schema of an object with named properties (not name and arguments among them), or send "
            "tool_choice required or none.",
            param=schema.param.partition(".")[0],
        )
    return replace(
        question,
        sampling=with_grammar(question.sampling, tools_grammar(toolbox, answer), model, texts_too=free_text),
        call_names=tuple(tool.name for tool in toolbox.tools),
    )


def with_text_form(question: Question, model: ServedModel, form: Form) -> Question:
    """Have the answer be one of the form's choices, or fit its pattern. Raises InvalidRequest."""
    check_special_texts(form.schema, model.tokenizer.special_ids)
    exact = question.conversation.continues or form.begins_with_space
    sampling = with_grammar(question.sampling, form.grammar(space_first=not exact), model, texts_too=False)
    return replace(question, sampling=sampling, form=form, exact=exact, schemas=(form.schema,))


def schema_of(
    form: TextFormat | JsonObjectFormat | JsonSchemaFormat | FlatJsonSchemaFormat | None, param: str
) -> ReadSchema | None:
    """The schema that the answer must fit; None for free text. ``param``: the field of ``form``.

    Raises InvalidRequest.
    """
    if form is None or isinstance(form, TextFormat):
        return None
    schema, strict = form.schema_, None
    place = "schema"
    if isinstance(form, FlatJsonSchemaFormat):
        strict = form.strict
    elif schema is None and isinstance(form, JsonObjectFormat) and form.value is not None:
        schema, place = form.value, "value"
    elif schema is None and isinstance(form, JsonSchemaFormat):
        inner, place = (form.json_schema, "json_schema") if form.value is None else (form.value, "value")
        if inner is None:
            param = f"{param}.json_schema"
            message, code = f"Missing required parameter: '{param}'.", ErrorCode.MISSING_REQUIRED_PARAMETER
            raise InvalidRequest(message, param=param, code=code)
        schema, strict, place = inner.schema_, inner.strict, f"{place}.schema"
    return read_schema(ANY_OBJECT if schema is None else schema, f"{param}.{place}", strict)


def chat_question(request: ChatCompletionRequest, model: ServedModel, most_choices: int) -> Question:
    """Raises InvalidRequest. Images and length are checked later."""
    conversation = conversation_of(request)
    functions = [(tool.function, f"tools[{index}].function") for index, tool in enumerate(request.tools or ())]
    toolbox = read_tools(functions, request.tool_choice, request.parallel_tool_calls is not False)
    schema = schema_of(request.response_format, "response_format")
    wanted = read_form(request)
    if wanted is not None and (schema is not None or toolbox is not None):
        other = "tools" if schema is None else "response_format"
        raise InvalidRequest(
            f"An answer has one form: send {other} or {wanted.schema.param}.", param=wanted.schema.param
        )
    question = Question(
        model=request.model,
        conversation=conversation,
        sampling=replace(
            read_sampling(request, model), logprobs=logprobs_of(request), prompt_logprobs=prompt_logprobs_of(request)
        ),
        choices=choices_of(request.n, most_choices),
        length=length_of(request),
    )
    if wanted is not None and wanted.bare:
        question = with_text_form(question, model, wanted)
    else:
        question = with_format(question, model, schema if wanted is None else wanted.schema, toolbox)
    asks = request.continue_final_message or (request.add_generation_prompt is False and conversation.continues)
    if asks and not question.conversation.continues:
        param = "add_generation_prompt" if request.continue_final_message is None else "continue_final_message"
        raise InvalidRequest(
            f"{param} asks for the last message to be continued in words: make it an assistant's, and send neither a "
            "response_format of JSON nor a tool_choice that requires a call.",
            param=param,
        )
    return question


def conversation_of(request: ChatCompletionRequest) -> Conversation:
    """Without a generation prompt an assistant's last message is continued, and a user's has no header after it.

    Raises InvalidRequest.
    """
    continues, header = request.continue_final_message, request.add_generation_prompt
    by_user = request.messages[-1].role != "assistant"
    if continues is not None and header == continues and not (by_user and header is False):
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message contradict each other: leave one of them out.",
            param="add_generation_prompt",
        )
    if continues is None and header is not None:
        continues = not header
    conversation = read_messages(request.messages).finish(continues)
    return replace(conversation, header=not (by_user and header is False))


def length_of(request: ChatCompletionRequest) -> Length:
    """The smaller bound of the two names, since both are upper bounds."""
    old, new = upper_bound(request.max_tokens), upper_bound(request.max_completion_tokens)
    if new is None or (old is not None and old < new):
        return Length(old)
    return Length(new, "max_completion_tokens")


def logprobs_of(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return None
