"""A request of the Responses API -> a question. Its items are what chat calls messages."""

from collections.abc import Sequence
from dataclasses import replace

from llava_api.chat.conversation import Transcript, read_parts
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question, schema_of, with_format
from llava_api.chat.sampling import Length, read_sampling, upper_bound
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.protocol import responses as wire
from llava_api.protocol import tools


def response_question(
    request: wire.ResponseRequest,
    earlier: Sequence[wire.InputItem],
    given: Sequence[wire.InputItem],
    model: ServedModel,
) -> Question:
    """``earlier``: the items of previous_response_id; ``given``: those of input. Raises InvalidRequest."""
    transcript = Transcript()
    if request.instructions is not None:
        transcript.say("system", [request.instructions])
    for item in earlier:
        # These are not in this request.
        read_item(item, "previous_response_id", transcript)
    for place, item in enumerate(given):
        read_item(item, f"input[{place}]", transcript)
    last = [*earlier, *given][-1:]
    complete = last and isinstance(last[0], wire.MessageItem) and last[0].status == "completed"
    sampling = read_sampling(request, model)
    with_logprobs = "message.output_text.logprobs" in (request.include or ()) or request.top_logprobs is not None
    question = Question(
        model=request.model,
        # OpenAI's API, too, answers a complete message of an assistant with another one.
        conversation=transcript.finish(False if complete else None),
        sampling=replace(sampling, logprobs=request.top_logprobs or 0 if with_logprobs else None),
        length=Length(upper_bound(request.max_output_tokens), "max_output_tokens", "input"),
    )
    form = None if request.text is None else request.text.format
    return with_format(question, model, schema_of(form, "text.format"), toolbox_of(request))


def read_item(item: wire.InputItem, param: str, transcript: Transcript) -> None:
    match item:
        case wire.MessageItem():
            transcript.say(item.role, read_parts(item.content, f"{param}.content", transcript))
        case wire.CallItem():
            transcript.call(item.call_id, item.name, item.arguments)
        case wire.CallOutputItem():
            transcript.result(item.call_id, None, read_parts(item.output, f"{param}.output", transcript))


def toolbox_of(request: wire.ResponseRequest) -> Toolbox | None:
    functions: list[tuple[tools.Function, str]] = [
        (tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())
    ]
    return read_tools(functions, request.tool_choice, request.parallel_tool_calls is not False)
