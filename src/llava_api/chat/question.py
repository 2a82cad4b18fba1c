"""A request of any chat endpoint: a conversation, and how it is to be answered."""

from dataclasses import dataclass, replace

from llava_api.chat.conversation import Conversation, read_conversation
from llava_api.chat.grammar import ANY_OBJECT, differs_from_calls, json_grammar, tools_grammar
from llava_api.chat.model import ServedModel
from llava_api.chat.sampling import Length, choices_of, read_sampling, upper_bound, with_grammar
from llava_api.chat.schema import Schema, check_schema, check_special_texts
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.engine.base import Sampling
from llava_api.errors import InvalidRequest
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.formats import JsonObjectFormat, JsonSchemaFormat, ResponseFormat

SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True)
class Question:
    model: str
    """The name in the request."""
    conversation: Conversation
    sampling: Sampling
    length: Length
    call_names: tuple[str, ...] = ()
    """Functions that the answer may call; empty for none."""
    json: bool = False
    """Whether an answer that calls nothing is JSON."""
    choices: int = 1
    schemas: tuple[tuple[str, Schema], ...] = ()
    """The schemas that the answer's grammar is made of, each with its field."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Free text, JSON, calls, or what the model chooses among them."""

    schema: Schema | None
    """None for free text."""
    param: str
    """The field that the schema is from."""
    toolbox: Toolbox | None

    def apply(self, question: Question, model: ServedModel) -> Question:
        """Raises InvalidRequest if the format cannot be combined with the rest of the question."""
        toolbox = self.toolbox
        if toolbox is None and self.schema is None:
            return question
        schemas = () if toolbox is None else tuple((tool.param, tool.schema) for tool in toolbox.tools)
        if self.schema is not None:
            schemas = ((self.param, self.schema), *schemas)
        for param, schema in schemas:
            check_special_texts(schema, model.tokenizer.special_ids, param)
        if question.conversation.continues:
            raise InvalidRequest(
                "continue_final_message cannot be combined with response_format or tools.",
                param="continue_final_message",
            )
        if toolbox is None:
            assert self.schema is not None
            grammar = json_grammar(self.schema)
            sampling = with_grammar(question.sampling, grammar, model, texts_too=False)
            return replace(question, sampling=sampling, schemas=schemas, json=True)
        if self.schema is not None and toolbox.mode == "auto" and not differs_from_calls(self.schema):
            raise InvalidRequest(
                "If the model may call a function or answer in JSON, the JSON must not look like a call: give a "
                "json_schema of an object with named properties (not name and arguments among them), or send "
                "tool_choice required or none.",
                param=self.param.partition(".")[0],
            )
        conversation = question.conversation.with_system(model.family.default_system, toolbox.description())
        free_text = toolbox.mode == "auto" and self.schema is None
        sampling = with_grammar(question.sampling, tools_grammar(toolbox, self.schema), model, texts_too=free_text)
        names = tuple(tool.name for tool in toolbox.tools)
        return replace(
            question,
            conversation=conversation,
            sampling=sampling,
            call_names=names,
            schemas=schemas,
            json=self.schema is not None,
        )


def object_schema(form: JsonObjectFormat, param: str) -> Schema:
    """Raises InvalidRequest."""
    if form.schema_ is None:
        return ANY_OBJECT
    check_schema(form.schema_, param)
    return form.schema_


def schema_of(form: ResponseFormat | None) -> Schema | None:
    """The schema that the answer must fit; None for free text. Raises InvalidRequest."""
    if isinstance(form, JsonObjectFormat):
        return object_schema(form, "response_format.schema")
    if not isinstance(form, JsonSchemaFormat):
        return None
    schema = form.json_schema.schema_
    if schema is None:
        return ANY_OBJECT
    check_schema(schema, SCHEMA_PARAM)
    return schema


def chat_question(request: ChatCompletionRequest, model: ServedModel, most_choices: int) -> Question:
    """Raises InvalidRequest. Images and length are checked later."""
    continues = bool(request.continue_final_message)
    if request.add_generation_prompt is not None and request.add_generation_prompt == continues:
        raise InvalidRequest(
            "add_generation_prompt is false with continue_final_message, and true without.",
            param="add_generation_prompt",
        )
    functions = [(tool.function, f"tools[{index}].function") for index, tool in enumerate(request.tools or ())]
    parallel = request.parallel_tool_calls is not False
    toolbox = read_tools(functions, request.tool_choice, parallel)
    answer_format = AnswerFormat(schema_of(request.response_format), SCHEMA_PARAM, toolbox)
    question = Question(
        model=request.model,
        conversation=read_conversation(request.messages, continues),
        sampling=replace(read_sampling(request, model), logprobs=logprobs_of(request)),
        choices=choices_of(request.n, most_choices),
        length=length_of(request),
    )
    return answer_format.apply(question, model)


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
