"""Text completions: prompts without a template -> engine requests."""

import asyncio
from dataclasses import dataclass, replace
from typing import cast

from llava_api.chat.answers import AnswerSpec
from llava_api.chat.choice_scores import ScoredPrompts, check_scored, scored_prompts
from llava_api.chat.forms import read_form
from llava_api.chat.prepare import Preparer, engine_choices
from llava_api.chat.sampling import (
    Length,
    answer_room,
    check_ids,
    choices_of,
    prompt_logprobs_of,
    read_sampling,
    upper_bound,
    with_grammar,
)
from llava_api.chat.schema import check_special_texts
from llava_api.engine.base import GenerationRequest, Sampling
from llava_api.errors import InvalidRequest
from llava_api.limits.account import Account
from llava_api.protocol.completions import CompletionRequest, Prompt
from llava_api.telemetry.record import current

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Plain:
    """Prompts to continue, each with its engine request."""

    texts: list[str]
    specs: list[AnswerSpec]
    """One for each text."""
    echo: bool
    """Whether the prompt is sent before the answer."""
    prompt_top: int | None
    """Number of the most likely tokens at each position of the prompt, if its log-probabilities are to be sent."""
    silent: bool
    """Whether only the prompt is wanted (max_tokens 0). The one token that the engine makes is left out."""

    @property
    def choices(self) -> int:
        """Number of answers to each prompt."""
        return self.specs[0].choices


def read_prompts(prompt: Prompt) -> list[str | list[int]]:
    """The four forms of a prompt as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return list(cast("list[str | list[int]]", prompt))


async def prepare_plain(preparer: Preparer, request: CompletionRequest, request_id: str, account: Account) -> Plain:
    """Raises InvalidRequest and its kinds, and RateLimited."""
    model = preparer.model
    adapter = preparer.find_adapter(request.model)
    echo = bool(request.echo)
    most = preparer.settings.max_choices
    choices = choices_of(request.n, most)
    given = read_prompts(request.prompt)
    if not given or [] in given:
        raise InvalidRequest("prompt must not be an empty list.", param="prompt")
    if len(given) * choices > most:
        raise InvalidRequest(f"prompts times n may be up to {most} on this server.", param="prompt")
    if request.best_of is not None and request.best_of != choices:
        raise InvalidRequest("best_of must equal n: answers are not ranked here.", param="best_of")
    sampling = read_sampling(request, model)
    prompt_top = prompt_logprobs_of(request)
    echoed = [top for top in (request.logprobs if echo else None, prompt_top) if top is not None]
    sampling = replace(sampling, logprobs=request.logprobs, prompt_logprobs=max(echoed, default=None))
    form = read_form(request)
    if form is not None:
        check_special_texts(form.schema, model.tokenizer.special_ids)
        sampling = with_grammar(sampling, form.grammar(space_first=False), model, texts_too=False)
        await preparer.check_grammar(sampling.grammar, (form.schema,), account.queue)
    # The engine makes one token at least.
    asked_tokens = 1 if request.max_tokens == 0 else upper_bound(request.max_tokens)
    length = Length(asked_tokens, "max_tokens", "prompt").within(account)
    if request.max_tokens is None:
        length = replace(length, max_tokens=min(DEFAULT_MAX_TOKENS, length.most or DEFAULT_MAX_TOKENS))
    prompts = [await read_prompt(preparer, prompt) for prompt in given]
    record = current()
    if record.keeps_prompt:
        record.prompt = "\n\n".join(text for text, _ in prompts)
    specs = []
    tokens = 0
    for place, (text, token_ids) in enumerate(prompts):
        room = answer_room(length, len(token_ids), 0, preparer.max_model_len, sampling)
        made = engine_choices(sampling, choices)
        name = f"{request_id}-{place}"
        salt = preparer.cache_salt(account.caller)
        engine_request = GenerationRequest(name, token_ids, (), sampling, room, adapter, made, salt)
        scored = ScoredPrompts()
        if form is not None and form.choices and request.logprobs is not None and isinstance(given[place], str):
            check_scored(len(form.choices) * len(given), len(text))
            answered = (model.tokenizer.encode_text(text + choice) for choice in form.choices)
            scored = await asyncio.to_thread(scored_prompts, token_ids, answered, preparer.max_model_len, "prompt")
        tokens += len(token_ids) + scored.tokens
        specs.append(AnswerSpec(engine_request, choices, model.tokenizer, spaces_cut=False, form=form, scored=scored))
    await account.spend_prompt(tokens)
    return Plain([text for text, _ in prompts], specs, echo, prompt_top, request.max_tokens == 0)


async def read_prompt(preparer: Preparer, prompt: str | list[int]) -> tuple[str, list[int]]:
    """(text, token ids). Raises InvalidRequest for unknown token ids and for image tokens."""
    model = preparer.model
    if isinstance(prompt, str):
        preparer.check_length(len(prompt), "prompt")
        token_ids = await asyncio.to_thread(model.tokenizer.encode_text, prompt)
        if not token_ids:
            raise InvalidRequest("This model has no BOS token: prompt must not be empty.", param="prompt")
        return prompt, token_ids
    # Before each token is checked.
    answer_room(Length(None, "max_tokens", "prompt"), len(prompt), 0, preparer.max_model_len, Sampling(0))
    check_ids(prompt, model, "prompt")
    if model.checkpoint.image_token_id in prompt:
        raise InvalidRequest("prompt has the image token, but text completions have no images.", param="prompt")
    return model.tokenizer.text(token for token in prompt if not model.tokenizer.is_special(token)), prompt
