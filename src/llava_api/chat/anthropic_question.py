"""A request of Anthropic's Messages API -> a question."""

from dataclasses import replace

from llava_api.chat.conversation import Parts, Transcript, json_text, plain_text
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question, with_format
from llava_api.chat.sampling import Length, read_extensions
from llava_api.chat.schema import Schema, check_schema
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.errors import InvalidRequest
from llava_api.images.load import ImagePart
from llava_api.protocol import anthropic as wire
from llava_api.protocol import tools

MODES: dict[str, tools.ToolMode] = {"auto": "auto", "any": "required", "none": "none"}


def messages_question(request: wire.MessagesRequest, model: ServedModel) -> Question:
    """Raises InvalidRequest for what is wrong with the request as a whole, apart from images and length."""
    transcript = Transcript()
    if request.system is not None:
        transcript.systems.append(plain_text(request.system))
    for position, message in enumerate(request.messages):
        if isinstance(message, wire.SystemInputMessage):
            transcript.systems.append(plain_text(message.content))
        else:
            read_message(message, f"messages[{position}].content", transcript)
    conversation = transcript.finish("messages")
    param, schema = schema_of(request)
    toolbox = toolbox_of(request)
    if conversation.continues and toolbox is not None and toolbox.mode == "auto" and schema is None:
        # An answer that has begun in words goes on in words.
        conversation = conversation.with_system(model.family.default_system, toolbox.description())
        toolbox = None
    elif conversation.continues and (toolbox is not None or schema is not None):
        raise InvalidRequest(
            "The last message begins the answer in words, so the answer cannot be a tool call or JSON: leave out that "
            "message, or tool_choice and output_config.",
            param="messages",
        )
    sampling = read_extensions(request, model)
    question = Question(
        model=request.model,
        conversation=conversation,
        sampling=replace(sampling, stop=(*(request.stop_sequences or ()), *sampling.stop)),
        length=Length(request.max_tokens),
    )
    return with_format(question, model, schema, param, toolbox)


def read_message(message: wire.InputMessage, param: str, transcript: Transcript) -> None:
    if isinstance(message.content, str):
        transcript.say(message.role, [message.content])
        return
    parts: Parts = []
    for index, block in enumerate(message.content):
        here = f"{param}[{index}]"
        match block:
            case wire.TextBlock():
                parts.append(block.text)
            case wire.ImageBlock():
                if message.role == "assistant":
                    raise InvalidRequest("An assistant's message has no images: send them as a user's.", param=here)
                parts.append(transcript.show(read_image(block, here)))
            case wire.ToolUseBlock():
                parts.append(transcript.call(block.id, block.name, json_text(block.input, f"{here}.input")))
            case wire.ToolResultBlock():
                if parts:
                    transcript.say(message.role, parts)
                    parts = []
                transcript.result(block.tool_use_id, read_result(block, here, transcript), f"{here}.tool_use_id")
    if parts:
        transcript.say(message.role, parts)


def read_result(block: wire.ToolResultBlock, param: str, transcript: Transcript) -> Parts:
    content = block.content
    parts: Parts = ["Error:"] if block.is_error else []
    if isinstance(content, str):
        return [*parts, content]
    for index, inner in enumerate(content or ()):
        if isinstance(inner, wire.TextBlock):
            parts.append(inner.text)
        else:
            parts.append(transcript.show(read_image(inner, f"{param}.content[{index}]")))
    return parts


def read_image(block: wire.ImageBlock, param: str) -> ImagePart:
    """Bare base64 becomes a ``data:`` URL. The copy is within ``COPIES_GROWN`` of the body, which is gone by now."""
    source = block.source
    if isinstance(source, wire.UrlSource):
        return ImagePart(source.url, f"{param}.source.url", None)
    return ImagePart(f"data:;base64,{source.data}", f"{param}.source.data", None)


def schema_of(request: wire.MessagesRequest) -> tuple[str, Schema | None]:
    """The field and the schema that the answer must fit; None for free text. Raises InvalidRequest."""
    param, form = "output_format.schema", request.output_format
    if request.output_config is not None and request.output_config.format is not None:
        param, form = "output_config.format.schema", request.output_config.format
    if form is None:
        return param, None
    check_schema(form.schema_, param)
    return param, form.schema_


def toolbox_of(request: wire.MessagesRequest) -> Toolbox | None:
    functions = [
        # Not validated: Anthropic's names may be longer than OpenAI's.
        (
            tools.Function.model_construct(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=None
            ),
            f"tools[{index}]",
        )
        for index, tool in enumerate(request.tools or ())
    ]
    choice = request.tool_choice
    if isinstance(choice, wire.ToolChoiceName):
        named = tools.FlatNamedTool(type="function", name=choice.name)
        return read_tools(functions, named, parallel=False, schema_field="input_schema")
    mode = None if choice is None else MODES[choice.type]
    parallel = choice is None or not choice.disable_parallel_tool_use
    return read_tools(functions, mode, parallel, schema_field="input_schema")
