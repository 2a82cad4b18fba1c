"""A request of Anthropic's Messages API -> a question."""

from collections.abc import Sequence
from dataclasses import replace

from llava_api.chat.conversation import Parts, Transcript
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question, with_format
from llava_api.chat.sampling import Length, read_extensions
from llava_api.chat.schema import ReadSchema, read_schema
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.images.load import ImagePart
from llava_api.images.source import stored_url
from llava_api.protocol import anthropic as wire
from llava_api.protocol import tools

MODES: dict[str, tools.ToolMode] = {"auto": "auto", "any": "required", "none": "none"}


def messages_question(request: wire.MessagesRequest, model: ServedModel) -> Question:
    """Raises InvalidRequest for what is wrong with the request as a whole, apart from images and length."""
    transcript = Transcript()
    if request.system is not None:
        read_content("system", request.system, "system", transcript)
    for position, message in enumerate(request.messages):
        read_content(message.role, message.content, f"messages[{position}].content", transcript)
    schema = schema_of(request)
    sampling = read_extensions(request, model)
    question = Question(
        model=request.model,
        conversation=transcript.finish(),
        sampling=replace(sampling, stop=(*(request.stop_sequences or ()), *sampling.stop)),
        length=Length(request.max_tokens),
    )
    return with_format(question, model, schema, toolbox_of(request))


def read_content(role: str, content: str | Sequence[wire.Block], param: str, transcript: Transcript) -> None:
    if isinstance(content, str):
        transcript.say(role, [content])
        return
    for index, block in enumerate(content):
        here = f"{param}[{index}]"
        match block:
            case wire.TextBlock() | wire.ImageBlock():
                transcript.say(role, [read_block(block, here, transcript)])
            case wire.ToolUseBlock():
                transcript.call(block.id, block.name, block.input)
            case wire.ToolResultBlock():
                parts: Parts = ["Error:"] if block.is_error else []
                parts += read_blocks(block.content or "", f"{here}.content", transcript)
                transcript.result(block.tool_use_id, None, parts)


def read_blocks(content: str | Sequence[wire.TextBlock | wire.ImageBlock], param: str, transcript: Transcript) -> Parts:
    if isinstance(content, str):
        return [content]
    return [read_block(block, f"{param}[{index}]", transcript) for index, block in enumerate(content)]


def read_block(block: wire.TextBlock | wire.ImageBlock, param: str, transcript: Transcript) -> str | int:
    return block.text if isinstance(block, wire.TextBlock) else transcript.show(read_image(block, param))


def read_image(block: wire.ImageBlock, param: str) -> ImagePart:
    """Bare base64 becomes a ``data:`` URL. The copy is within ``COPIES_GROWN`` of the body, which is gone by now."""
    source = block.source
    if isinstance(source, wire.UrlSource):
        return ImagePart(source.url, f"{param}.source.url")
    if isinstance(source, wire.FileSource):
        return ImagePart(stored_url(source.file_id), f"{param}.source.file_id")
    return ImagePart(f"data:;base64,{source.data}", f"{param}.source.data")


def schema_of(request: wire.MessagesRequest) -> ReadSchema | None:
    """The schema that the answer must fit; None for free text. Raises InvalidRequest."""
    param, form = "output_format.schema", request.output_format
    if request.output_config is not None and request.output_config.format is not None:
        param, form = "output_config.format.schema", request.output_config.format
    return None if form is None else read_schema(form.schema_, param)


def toolbox_of(request: wire.MessagesRequest) -> Toolbox | None:
    functions = [
        (
            tools.Function(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
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
