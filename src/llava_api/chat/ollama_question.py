"""A request of Ollama's API -> a question."""

from collections.abc import Sequence
from dataclasses import replace

from llava_api.chat.conversation import Parts, Transcript, json_text
from llava_api.chat.grammar import ANY_OBJECT
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question, with_format
from llava_api.chat.sampling import Length, read_sampling, upper_bound
from llava_api.chat.schema import ReadSchema, read_schema
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.errors import InvalidRequest
from llava_api.images.load import ImagePart
from llava_api.protocol import ollama as wire
from llava_api.protocol.sampling import SamplingRequest

LATEST = ":latest"


def served_name(name: str, model: ServedModel) -> str:
    """Ollama adds ``:latest`` to a name without a tag."""
    short = name.removesuffix(LATEST)
    return short if name not in model.served_names() and short in model.served_names() else name


def chat_question(request: wire.OllamaChatRequest, model: ServedModel) -> Question:
    """Raises InvalidRequest. Images and length are checked later."""
    transcript = Transcript()
    called: dict[str, str] = {}
    for position, message in enumerate(request.messages):
        read_message(message, f"messages[{position}]", transcript, called)
    functions = [(tool.function, f"tools[{index}].function") for index, tool in enumerate(request.tools or ())]
    return question_of(request, transcript, "messages", read_tools(functions, None, parallel=True), model)


def generate_question(request: wire.OllamaGenerateRequest, model: ServedModel) -> Question:
    """Raises InvalidRequest. Images and length are checked later."""
    transcript = Transcript()
    if request.system is not None:
        transcript.instruct([request.system])
    transcript.say("user", [*read_images(request.images, "images", transcript), request.prompt])
    return question_of(request, transcript, "prompt", None, model)


def read_message(message: wire.OllamaMessage, param: str, transcript: Transcript, called: dict[str, str]) -> None:
    """``called``: id of each call without a result -> name of its function."""
    images = read_images(message.images, f"{param}.images", transcript)
    match message.role:
        case "system":
            transcript.instruct([*images, message.content])
        case "tool":
            call_id = answered_call(message, called)
            if call_id is None:
                raise InvalidRequest("This answers a call that no message before it made.", param=param)
            called.pop(call_id)
            transcript.result(call_id, [message.content, *images], param)
        case role:
            transcript.say(role, [*images, message.content])
    for index, call in enumerate(message.tool_calls or ()):
        here = f"{param}.tool_calls[{index}]"
        # Older clients' calls have no ids.
        call_id = call.id or here
        called[call_id] = call.function.name
        transcript.call(call_id, call.function.name, json_text(call.function.arguments, f"{here}.function.arguments"))


def answered_call(message: wire.OllamaMessage, called: dict[str, str]) -> str | None:
    """The id of the call whose result a message is: the first that fits what the message says of it."""
    for call_id, name in called.items():
        if message.tool_call_id in (None, call_id) and message.tool_name in (None, name):
            return call_id
    return None


def read_images(images: Sequence[str] | None, param: str, transcript: Transcript) -> Parts:
    return [transcript.show(ImagePart(image, f"{param}[{index}]", None)) for index, image in enumerate(images or ())]


def question_of(
    request: wire.OllamaRequest, transcript: Transcript, param: str, toolbox: Toolbox | None, model: ServedModel
) -> Question:
    options = request.options or wire.OllamaOptions.model_construct()
    sampling = read_sampling(
        SamplingRequest.model_construct(
            **options.model_dump(exclude={"num_predict", "repeat_penalty", "seed"}),
            seed=None if options.seed == -1 else options.seed,
            repetition_penalty=options.repeat_penalty,
        ),
        model,
    )
    question = Question(
        model=served_name(request.model, model),
        conversation=transcript.finish(),
        sampling=replace(sampling, logprobs=(request.top_logprobs or 0) if request.logprobs else None),
        length=Length(upper_bound(options.num_predict), "options.num_predict", param),
    )
    return with_format(question, model, schema_of(request), toolbox)


def schema_of(request: wire.OllamaRequest) -> ReadSchema | None:
    """The schema that the answer must fit; None for free text. Raises InvalidRequest."""
    if request.format is None:
        return None
    return read_schema(ANY_OBJECT if request.format == "json" else request.format, "format")
