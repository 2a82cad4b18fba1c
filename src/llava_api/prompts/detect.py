"""Finds the prompt family of a checkpoint from its config and tokenizer, never from a folder's name."""

from collections.abc import Callable

from llava_api.errors import StartupError
from llava_api.prompts.families import FAMILIES
from llava_api.prompts.family import PromptFamily
from llava_api.prompts.hub_template import HubTemplate
from llava_api.vision.families import FAMILIES as VISION
from llava_api.vision.families import VisionFamily

HUB = "hub"
PromptFormat = PromptFamily | HubTemplate
"""How a conversation is written as a prompt. Both have the same attributes and ``layout``."""


def detect_family(
    text_model_type: str,
    vision: VisionFamily,
    knows_token: Callable[[str], bool],
    find_template: Callable[[], HubTemplate | None],
    override: str | None = None,
) -> tuple[PromptFormat, str]:
    """(family, the reason in words). Raises StartupError if none fits or the override is unknown.

    ``find_template`` returns the checkpoint's own chat template if it takes images. It is called only if the result
    depends on it, because a template is a program from outside.
    """
    if override is not None:
        return chosen(override, find_template), "set by --prompt-family"
    if knows_token("<|start_header_id|>"):
        return FAMILIES["llava_llama_3"], "its tokenizer knows <|start_header_id|>"
    if text_model_type == "llama" and knows_token("<|im_start|>"):
        return FAMILIES["chatml_direct"], "its text model is llama and its tokenizer knows <|im_start|>"
    if text_model_type == "llama":
        return FAMILIES["vicuna_v1"], "its text model is llama, without chat markers in its tokenizer"
    trained = vision.prompt_families.get(text_model_type)
    template = find_template() if trained is None else None
    if template is not None:
        reason = f"LLaVA's authors made no {vision.version} checkpoint on {text_model_type}; it has a chat template"
        return template, reason
    # Without a template, assume that it was trained as the authors trained this text model in another family.
    known = trained or next(filter(None, (family.prompt_families.get(text_model_type) for family in VISION)), None)
    if known is not None:
        return FAMILIES[known], f"its text model is {text_model_type}"
    raise StartupError(
        f"no prompt family is known for a text model of type {text_model_type}, and the checkpoint has no chat "
        "template that takes images: name a family with --prompt-family"
    )


def chosen(name: str, find_template: Callable[[], HubTemplate | None]) -> PromptFormat:
    """The family that ``--prompt-family`` names."""
    if name == HUB:
        template = find_template()
        if template is None:
            raise StartupError("--prompt-family hub: the checkpoint has no chat template that takes images")
        return template
    if name not in FAMILIES:
        raise StartupError(f"--prompt-family must be one of {', '.join((*FAMILIES, HUB))}")
    return FAMILIES[name]
