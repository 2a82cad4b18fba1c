"""A request of Ollama's API -> a question."""

from collections.abc import Sequence
from dataclasses import replace

from llava_api.chat.conversation import Parts, Transcript
from llava_api.chat.grammar import ANY_OBJECT
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question, with_format
from llava_api.chat.sampling import Length, read_sampling, upper_bound
from llava_api.chat.schema import ReadSchema, read_schema
from llava_api.chat.tools import Toolbox, read_tools
from llava_api.errors import BadImage
from llava_api.images.load import ImagePart
from llava_api.images.source import scheme_of
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
    for position, message in enumerate(request.messages):
        read_message(message, f"messages[{position}]", transcript)
    functions = [(tool.function, f"tools[{index}].function") for index, tool in enumerate(request.tools or ())]
    return question_of(request, transcript, "messages", read_tools(functions, None, parallel=True), model)


def generate_question(request: wire.OllamaGenerateRequest, model: ServedModel) -> Question:
    """Raises InvalidRequest. Images and length are checked later."""
    transcript = Transcript()
    if request.system is not None:
        transcript.say("system", [request.system])
    transcript.say("user", [*read_images(request.images, "images", transcript), request.prompt])
    return question_of(request, transcript, "prompt", None, model)


def read_message(message: wire.OllamaMessage, param: str, transcript: Transcript) -> None:
    images = read_images(message.images, f"{param}.images", transcript)
    if message.role == "tool":
        transcript.result(message.tool_call_id, message.tool_name, [message.content, *images])
    else:
        transcript.say(message.role, [*images, message.content])
    for call in message.tool_calls or ():
        transcript.call(call.id, call.function.name, call.function.arguments)


def read_images(images: Sequence[str] | None, param: str, transcript: Transcript) -> Parts:
    return [transcript.show(ImagePart(as_url(image), f"{param}[{index}]")) for index, image in enumerate(images or ())]


def as_url(image: str) -> str:
    """What is no URL is base64, however short or damaged, so that its error speaks of that."""
    try:
        scheme_of(image)
    except BadImage:
        return f"data:image;base64,{image}"
    return image


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
