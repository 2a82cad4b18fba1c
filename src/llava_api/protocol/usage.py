"""Token counts."""

from llava_api.protocol.wire import Wire


class PromptTokensDetails(Wire):
    cached_tokens: int
    """Prompt tokens that had been computed for an earlier request."""
    image_tokens: int
    """Prompt tokens of the pictures."""


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(text_tokens: int, image_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    prompt_tokens = text_tokens + image_tokens
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens, image_tokens=image_tokens),
    )
