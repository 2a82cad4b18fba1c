"""Which family a checkpoint was trained on, from its config and tokenizer; never from a folder's name."""

from collections.abc import Callable

from llava_api.errors import StartupError
from llava_api.prompts.families import FAMILIES
from llava_api.prompts.family import PromptFamily


def detect_family(
    text_model_type: str, knows_token: Callable[[str], bool], override: str | None = None
) -> tuple[PromptFamily, str]:
    """(family, the reason in words). Raises StartupError where none fits or the override is unknown."""
    if override is not None:
        if override not in FAMILIES:
            raise StartupError(f"--prompt-family must be one of {', '.join(FAMILIES)}")
        return FAMILIES[override], "set by --prompt-family"
    if knows_token("<|start_header_id|>"):
        return FAMILIES["llava_llama_3"], "its tokenizer knows <|start_header_id|>"
    if text_model_type == "qwen2":
        return FAMILIES["qwen_1_5"], "its text model is qwen2"
    if text_model_type == "mistral":
        return FAMILIES["mistral_instruct"], "its text model is mistral"
    if text_model_type == "llama" and knows_token("<|im_start|>"):
        return FAMILIES["chatml_direct"], "its text model is llama and its tokenizer knows <|im_start|>"
    if text_model_type == "llama":
        return FAMILIES["vicuna_v1"], "its text model is llama, without chat markers in its tokenizer"
    raise StartupError(
        f"no prompt family is known for a text model of type {text_model_type}: name one with --prompt-family"
    )
