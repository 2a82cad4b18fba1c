"""Family ``hub``: what a checkpoint's own chat template writes, when it is used, and what it cannot do."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llava_api.chat.model import ServedModel, describe_model
from llava_api.checkpoints.inspect import inspect_checkpoint
from llava_api.errors import InvalidRequest, StartupError
from llava_api.prompts.detect import detect_family
from llava_api.prompts.hub_template import HubTemplate
from llava_api.prompts.render import tokenize
from llava_api.prompts.segments import ImageSlot, Turn, as_text
from llava_api.settings import Settings
from llava_api.vision.families import LLAVA_1_5
from tests.support.tiny_checkpoints import Tiny, classic_config, write_processor
from tests.support.tiny_tokenizers import token_ids, write_json, write_tokenizer

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
REFUSED = "The checkpoint's chat template refuses these messages; their roles or their order do not suit it."
FAILED = "The checkpoint's chat template cannot write these messages down."
NO_PLACE = "The checkpoint's chat template has no place for an image in one of these messages."

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}
{%- if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEXT_ONLY = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
WITHOUT_SYSTEM = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}USER: {% for part in message.content %}
{%- if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}
{%- elif message.role == 'assistant' %} ASSISTANT: {{ message.content[0].text }}</s>{% endif %}
{%- endfor %} ASSISTANT:"""
STRICT = """\
{% for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('secret words of the template') }}{% endif %}
{%- if loop.index0 > 1 %}{{ 1 // 0 }}{% endif %}
{%- for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}
{%- endfor %}"""
MARKED_FOR_TRAINING = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content[0].text }}<|im_end|>
{%- endgeneration -%}
{% else %}
{% for part in message.content %}
{%- if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def hub(source: str, specials: Sequence[str] = SPECIALS) -> HubTemplate:
    return HubTemplate(source, specials, "<s>", "</s>")


def write_checkpoint(
    folder: Path, text_model: str, version: Literal["1.5", "1.6"] = "1.5", template: str | None = None
) -> Path:
    """A hub checkpoint's small files."""
    tiny = Tiny(text_model, version)
    write_tokenizer(text_model, folder, image_token=True)
    write_json(folder / "config.json", classic_config(tiny))
    write_processor(tiny, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def serve(folder: Path, family: str | None = None) -> ServedModel:
    return describe_model(inspect_checkpoint(str(folder)), ("model",), Settings(prompt_family=family))


# What is written


def as_transformers_writes(source: str, system: str | None, turns: Sequence[Turn]) -> str:
    """The same messages, every content a list of parts, through transformers' own ``apply_chat_template``."""
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for turn in turns:
        parts = [{"type": "image"} if isinstance(part, int) else {"type": "text", "text": part} for part in turn.parts]
        messages.append({"role": turn.role, "content": parts})
    written, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return str(written[0])


CONVERSATIONS: dict[str, list[Turn]] = {
    "one question": [Turn("user", (0, "What is it?"))],
    "no picture": [Turn("user", ("Who are you?",))],
    "later question": [Turn("user", (0, "What?")), Turn("assistant", ("A cat.\n",)), Turn("user", (1, " And here? "))],
    "between": [Turn("user", ("a", 0, "b", 1))],
    "marks of html and Jinja": [Turn("user", (0, '<b>&amp; "quoted" {{ bos_token }} {% if %} {# no #}'))],
}


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("system", [None, "Be brief."], ids=["no system", "system"])
@pytest.mark.parametrize("source", [CHATML, MARKED_FOR_TRAINING], ids=["chatml", "marked for training"])
def test_a_template_writes_what_transformers_makes_it_write(source: str, system: str | None, turns: list[Turn]) -> None:
    assert as_text(hub(source).layout(system, turns)) == as_transformers_writes(source, system, turns)


def test_images_stand_where_they_were_sent() -> None:
    turn = Turn("user", ("first", 0, "second", 1, "third"))
    later = Turn("user", (2, "fourth"))
    segments = hub(CHATML).layout(None, [turn, Turn("assistant", ("yes",)), later])
    assert [segment.index for segment in segments if isinstance(segment, ImageSlot)] == [0, 1, 2]
    assert "first<image>\nsecond<image>\nthird<|im_end|>" in as_text(segments)
    assert "<image>\nfourth<|im_end|>" in as_text(segments)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ((0, "A red"), "<|im_start|>user\nDraw.<|im_end|>\n<|im_start|>assistant\n<image>\nA red"),
        (("A red",), "<|im_start|>user\nDraw.<|im_end|>\n<|im_start|>assistant\nA red"),
    ],
    ids=["with an image", "words"],
)
def test_an_answer_that_is_continued_ends_the_prompt(answer: tuple[str | int, ...], wanted: str) -> None:
    segments = hub(CHATML).layout(None, [Turn("user", ("Draw.",)), Turn("assistant", answer)])
    assert as_text(segments) == wanted


def test_images_of_an_answer_stand_in_it() -> None:
    turns = [Turn("user", (0, "Draw.")), Turn("assistant", ("Here.", 1)), Turn("user", ("What?", 2))]
    segments = hub(CHATML).layout(None, turns)
    assert [segment.index for segment in segments if isinstance(segment, ImageSlot)] == [0, 1, 2]
    assert "assistant\nHere.<image>\n<|im_end|>" in as_text(segments)


def test_a_template_that_takes_text_gets_images_in_front_of_it() -> None:
    turn = Turn("user", ("one", 0, "two", 1))
    segments = hub("{% for m in messages %}[INST] {{ m['content'] + ' [/INST]' }}{% endfor %}").layout(None, [turn])
    assert as_text(segments) == "[INST] <image>\n<image>\none\ntwo [/INST]"
    assert [segment.index for segment in segments if isinstance(segment, ImageSlot)] == [0, 1]


@pytest.mark.parametrize("start", ["{{ bos_token }}", ""], ids=["template writes it", "template leaves it out"])
@pytest.mark.parametrize("text_model", ["llama", "mistral", "llama3"])
def test_bos_stands_once(text_model: str, start: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, text_model, template=start + CHATML)
    model = serve(folder, "hub")
    turns = [Turn("user", (0, "What?")), Turn("assistant", ("A cat.",)), Turn("user", (1, "Sure?"))]
    ids = tokenize(model.family.layout(None, turns), model.tokenizer, model.checkpoint.image_token_id, [3, 3]).token_ids
    bos = token_ids(text_model)["<|begin_of_text|>" if text_model == "llama3" else "<s>"]
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_qwens_prompts_have_no_bos(tmp_path: Path) -> None:
    model = serve(write_checkpoint(tmp_path, "qwen2", template=CHATML), "hub")
    ids = tokenize(model.family.layout(None, [Turn("user", ("What?",))]), model.tokenizer, 0, []).token_ids
    assert ids[0] == token_ids("qwen2")["<|im_start|>"]


@pytest.mark.parametrize(
    ("turn", "wanted"),
    [
        (Turn("user", ("What?",)), "USER: Be brief.\nWhat?"),
        (Turn("user", (0, "What?")), "USER: Be brief.\n<image>What?"),
        (Turn("user", ("What?", 0)), "USER: Be brief.\nWhat?<image>"),
    ],
    ids=["text", "picture first", "picture last"],
)
def test_a_system_message_is_kept_where_the_template_would_drop_it(turn: Turn, wanted: str) -> None:
    later = [Turn("assistant", ("A cat.",)), Turn("user", ("Sure?",))]
    written = as_text(hub(WITHOUT_SYSTEM).layout("Be brief.", [turn, *later]))
    assert written == f"<s>{wanted} ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"


def test_a_system_message_is_kept_where_the_template_refuses_one() -> None:
    written = as_text(hub(STRICT).layout("Be brief.", [Turn("user", ("What?",))]))
    assert written == "Be brief.\nWhat?"


def test_a_system_message_is_written_once_where_the_template_takes_it() -> None:
    assert as_text(hub(CHATML).layout("Be brief.", [Turn("user", ("What?",))])).count("Be brief.") == 1


def test_a_templates_own_system_message_stands_where_the_caller_gives_none() -> None:
    source = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    assert "Be kind." in as_text(hub(source).layout(None, [Turn("user", ("What?",))]))
    assert "Be kind." not in as_text(hub(source).layout("Be brief.", [Turn("user", ("What?",))]))


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        CHATML.replace("<|im_end|>", "\n <|im_end|>"),
        MARKED_FOR_TRAINING,
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}",
    ],
    ids=["parts", "spaces before it", "marked for training", "text"],
)
def test_the_token_behind_an_answer_ends_answers(source: str) -> None:
    assert hub(source).stop_tokens == ("<|im_end|>",)


def test_a_template_that_writes_no_token_behind_answers_names_no_stop() -> None:
    assert hub(TEXT_ONLY).stop_tokens == ()


def test_the_token_behind_an_answer_is_among_the_models_stops(tmp_path: Path) -> None:
    source = WITHOUT_SYSTEM.replace("</s>", "<|eot_id|>")
    model = serve(write_checkpoint(tmp_path, "llama3", template=source), "hub")
    assert token_ids("llama3")["<|eot_id|>"] in model.stop_token_ids


# What is refused


def refusal(template: HubTemplate, system: str | None, turns: Sequence[Turn]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        template.layout(system, turns)
    assert caught.value.status == 400
    assert caught.value.param == "messages"
    return caught.value.message


def test_a_refusal_of_the_template_is_told_in_our_own_words() -> None:
    source = "{% if messages | length > 1 %}{{ raise_exception('path /secret') }}{% endif %}" + CHATML
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    assert refusal(hub(source), None, turns) == REFUSED


@pytest.mark.parametrize(
    "crash",
    [
        "{{ 1 // 0 }}",
        "{{ messages[99].content.nothing }}",
        "{{ undefined_function() }}",
        "{{ messages + 1 }}",
        "{% include 'other.jinja' %}",
        "{{ range(1000000000) | length }}",
        "{% set _ = messages.append(1) %}",
        "{{ '%d' % 'x' }}",
    ],
)
def test_a_template_that_crashes_refuses_the_request(crash: str) -> None:
    # Only where there is an answer already: the start-up's own questions to it go well.
    source = "{% if messages | length == 3 and messages[2].content | length == 2 %}" + crash + "{% endif %}" + CHATML
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", (0, "c"))]
    template = hub(source)
    assert template.takes_images()
    assert refusal(template, None, turns) == FAILED


def test_an_image_that_the_template_leaves_out_is_refused() -> None:
    source = "{% for message in messages %}{% for part in message.content %}" + (
        "{% if part.type == 'image' and loop.first %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    template = hub(source)
    assert template.takes_images()
    assert refusal(template, None, [Turn("user", ("a", 0))]) == NO_PLACE


def test_a_template_that_is_no_jinja_is_told_at_the_start() -> None:
    with pytest.raises(StartupError, match="not valid Jinja"):
        hub("{% for message in messages %}")


@pytest.mark.parametrize("source", ["", "hello", "<image>", TEXT_ONLY.replace("message['content']", "''")])
def test_a_template_that_does_not_write_what_was_asked_takes_no_images(source: str) -> None:
    assert not hub(source).takes_images()


PARTS_AS_TEXT = "{% for m in messages %}{% for p in m.content %}{{ p.text | default('') }}{% endfor %}{% endfor %}"


def test_a_template_without_a_place_for_images_takes_none() -> None:
    assert not hub(PARTS_AS_TEXT).takes_images()


# The sandbox

OF_ONE_STEP = [
    "{{ ''.__class__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
]
"""What Jinja's sandbox writes nothing for."""
OPENERS = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{{ lipsum.__globals__['os'].popen('touch %s').read() }}",
    "{{ joiner.__init__.__globals__.os.system('touch %s') }}",
    "{{ namespace.__init__.__globals__.os.system('touch %s') }}",
    "{{ strftime_now.__globals__['secrets'].token_hex() }}",
    "{{ self._TemplateReference__context.environment.loader.__class__ }}",
    "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list|first }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': ''}) }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ (messages|tojson).__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
]


def only_for_two_images(expression: str) -> str:
    """A template that is harmless when the server asks it at the start."""
    return "{% if messages[0].content | length == 3 %}" + expression + "{% endif %}" + CHATML


@pytest.mark.parametrize("opener", OPENERS)
def test_a_template_that_reaches_for_python_is_not_used(opener: str, tmp_path: Path) -> None:
    source = opener.replace("%s", str(tmp_path / "it-ran")) + CHATML
    assert refusal(hub(source), None, [Turn("user", (0, "a"))]) == FAILED
    folder = write_checkpoint(tmp_path / "checkpoint", "qwen2", template=source)
    assert serve(folder).family.name == "qwen_1_5"
    with pytest.raises(StartupError):
        serve(folder, "hub")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("opener", OPENERS)
def test_a_template_that_reaches_for_python_later_refuses_the_request(opener: str, tmp_path: Path) -> None:
    template = hub(only_for_two_images(opener.replace("%s", str(tmp_path / "it-ran"))))
    assert template.takes_images()
    assert refusal(template, None, [Turn("user", (0, 1, "a"))]) == FAILED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("expression", OF_ONE_STEP)
def test_a_template_that_names_pythons_insides_writes_nothing_of_them(expression: str) -> None:
    turns = [Turn("user", (0, 1, "a"))]
    assert hub(only_for_two_images(expression)).layout(None, turns) == hub(CHATML).layout(None, turns)


# When it is used


@pytest.mark.parametrize(
    ("text_model", "version", "template", "family"),
    [
        ("qwen2", "1.5", CHATML, "hub"),
        ("qwen2", "1.5", None, "qwen_1_5"),
        ("qwen2", "1.5", PARTS_AS_TEXT, "qwen_1_5"),
        ("qwen2", "1.5", "{% for %}", "qwen_1_5"),
        ("qwen2", "1.6", CHATML, "qwen_1_5"),
        ("mistral", "1.5", CHATML, "hub"),
        ("mistral", "1.5", None, "mistral_instruct"),
        ("mistral", "1.6", CHATML, "mistral_instruct"),
        ("llama", "1.5", CHATML, "vicuna_v1"),
        ("llama", "1.6", None, "vicuna_v1"),
        ("llama3", "1.6", CHATML, "llava_llama_3"),
    ],
)
def test_which_form_a_checkpoint_is_served_in(
    text_model: str, version: Literal["1.5", "1.6"], template: str | None, family: str, tmp_path: Path
) -> None:
    assert serve(write_checkpoint(tmp_path, text_model, version, template)).family.name == family


def with_text_model(folder: Path, model_type: str) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["model_type"] = model_type
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_an_unknown_text_model_is_served_with_its_template(version: Literal["1.5", "1.6"], tmp_path: Path) -> None:
    model = serve(with_text_model(write_checkpoint(tmp_path, "qwen2", version, CHATML), "phi3"))
    assert model.family.name == "hub"
    assert "chat template" in model.family_reason


@pytest.mark.parametrize("template", [None, PARTS_AS_TEXT], ids=["no template", "none that takes images"])
def test_an_unknown_text_model_without_a_template_asks_for_a_family(template: str | None, tmp_path: Path) -> None:
    folder = with_text_model(write_checkpoint(tmp_path, "qwen2", template=template), "phi3")
    with pytest.raises(StartupError, match=r"phi3.*--prompt-family"):
        serve(folder)
    assert serve(folder, "qwen_1_5").family.name == "qwen_1_5"


def test_the_template_can_be_asked_for(tmp_path: Path) -> None:
    assert serve(write_checkpoint(tmp_path, "llama", template=CHATML), "hub").family.name == "hub"


@pytest.mark.parametrize("template", [None, PARTS_AS_TEXT, "{% for %}"], ids=["none", "no pictures", "no Jinja"])
def test_asking_for_a_template_that_is_not_there_is_told_at_the_start(template: str | None, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--prompt-family hub"):
        serve(write_checkpoint(tmp_path, "llama", template=template), "hub")


def test_an_unknown_family_is_told_with_the_known_ones() -> None:
    with pytest.raises(StartupError, match=r"vicuna_v1.*hub"):
        detect_family("llama", LLAVA_1_5, lambda token: False, lambda: None, override="vicuna")


def in_jinja_file(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def in_json_file(folder: Path, template: str) -> None:
    write_json(folder / "chat_template.json", {"chat_template": template})


def in_processor_config(folder: Path, template: str) -> None:
    change_json(folder / "processor_config.json", template)


def in_tokenizer_config(folder: Path, template: str) -> None:
    change_json(folder / "tokenizer_config.json", template)


def in_a_list_of_templates(folder: Path, template: str) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
    change_json(folder / "tokenizer_config.json", named)


def change_json(path: Path, template: str | list[dict[str, str]]) -> None:
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "chat_template": template})


@pytest.mark.parametrize(
    "place", [in_jinja_file, in_json_file, in_processor_config, in_tokenizer_config, in_a_list_of_templates]
)
def test_a_template_is_found_wherever_transformers_has_kept_it(
    place: Callable[[Path, str], None], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, "qwen2")
    place(folder, CHATML)
    assert serve(folder).family.name == "hub"
