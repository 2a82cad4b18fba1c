"""Fields of OpenAI's API or of vLLM's server that have no effect here, with one sentence each for whoever sends them.

A field is ignored if an answer without it is still right, and refused if ignoring it would give a wrong answer or if
it is internal to the engine.
"""

from collections.abc import Mapping

OLD_TOOLS = {
    "functions": "functions is the old form of tools: send tools instead.",
    "function_call": "function_call is the old form of tools: send tools and tool_choice instead.",
}

NOT_LLAVA = {
    "audio": "LLaVA takes and makes no audio: leave audio out.",
    "moderation": "This server does not moderate: leave moderation out.",
    "prediction": "Predicted outputs are not supported: leave prediction out.",
    "web_search_options": "LLaVA does not search the web: leave web_search_options out.",
}

WITHOUT_EFFECT = {
    "prompt_cache_options": "Prompts are always cached: leave prompt_cache_options out.",
    "prompt_cache_retention": "Prompts are cached as long as there is room: leave prompt_cache_retention out.",
    "reasoning_effort": "LLaVA does not reason before it answers: leave reasoning_effort out.",
    "verbosity": "LLaVA has no levels of verbosity: say in the prompt how long the answer should be.",
}

OWN_PROMPT = "This server writes prompts as the checkpoint was trained: leave {} out."
OWN_IMAGES = "This server prepares images as the checkpoint was trained: leave {} out."
OWN_TOKENS = "This server turns tokens into text as the checkpoint's tokenizer says: leave {} out."
GRAMMARS = "{} belongs to vLLM's server: send a choice, a regex or a JSON schema instead."
OTHER_FORMAT = "{} belongs to vLLM's server: send text.format or tools instead."
INTERNAL = "{} is internal to the engine, and callers cannot set it: leave it out."
NOT_SUPPORTED = "{} belongs to vLLM's server and is not supported here: leave it out."
NO_REASONING = "LLaVA does not reason before it answers: leave {} out."


def sentences(*groups: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: sentence.format(name) for sentence, names in groups for name in names}


VLLM = sentences(
    (OWN_PROMPT, ("add_special_tokens", "chat_template", "documents", "truncate_prompt_tokens")),
    (OWN_IMAGES, ("media_io_kwargs", "mm_processor_kwargs")),
    (GRAMMARS, ("guided_grammar", "structural_tag")),
    (INTERNAL, ("cache_salt", "ec_transfer_params", "kv_transfer_params", "priority")),
    (INTERNAL, ("prompt_embeds", "vllm_xargs")),
    (NOT_SUPPORTED, ("allowed_token_ids", "bad_words", "include_stop_str_in_output")),
    (NOT_SUPPORTED, ("logits_processors", "logprob_token_ids")),
    (NOT_SUPPORTED, ("repetition_detection", "return_tokens_as_token_ids")),
    (NOT_SUPPORTED, ("use_beam_search", "watermarking")),
)
FORM_FIELDS = ("structured_outputs", "guided_choice", "guided_json", "guided_regex")
VLLM_COMPLETIONS = sentences(
    (OTHER_FORMAT, FORM_FIELDS),
    (NOT_SUPPORTED, ("prompt_logprobs", "return_token_ids")),
)
"""Those that chat and text completions have."""
VLLM_IGNORED = sentences(
    (OWN_PROMPT, ("chat_template_kwargs", "truncation_side")),
    (OWN_TOKENS, ("spaces_between_special_tokens",)),
    (INTERNAL, ("request_id",)),
    (NOT_SUPPORTED, ("length_penalty",)),
    (NO_REASONING, ("include_reasoning", "thinking_token_budget")),
)

DONE_ANYWAY: Mapping[str, tuple[object, ...]] = {
    "add_special_tokens": (True,),
    "best_of": (1,),
    "chat_template_kwargs": ({"enable_thinking": False}, {"thinking": False}),
    "function_call": ("auto", "none"),
    "length_penalty": (1,),
    "reasoning": ({"effort": "none"},),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (-1,),
    "verbosity": ("medium",),
}
"""Refused or ignored field -> values that ask for what the server does anyway."""
EMPTY: tuple[object, ...] = (None, False, [], {}, "")
"""Values that many clients send for fields that they do not use. 0 equals False."""


def changes_nothing(name: str, value: object) -> bool:
    """Whether a field that is refused or ignored asks for nothing, or for what the server does anyway."""
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if inner is not None}
    return value in EMPTY or value in DONE_ANYWAY.get(name, ())


SENT_BY_CLIENTS = """
access_programs annotations api_base api_key background_tasks cache cache_control cache_prompt chat_id client_id
context_management conversation_id copilot_cache_control custom_token_bans debug do_sample draft_model
dry_allowed_length dry_base dry_multiplier dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range
early_stopping epsilon_cutoff eta_cutoff extra_body extra_headers features files format grammar grammar_string
guidance_scale id id_slot ignore_eos_token include_search index keep_alive logit_bias_type lora max_dynamic_patch
max_new_tokens max_output_tokens max_pixels max_tool_calls metadata min_dynamic_patch min_length min_pixels mirostat
mirostat_eta mirostat_tau modalities mode model_item models n_keep n_predict n_probs negative_prompt no_stop_trim
num_beams num_ctx num_gpu num_predict num_thread options opts parts penalize_nl penalty_alpha plugins
post_sampling_probs preset prompt_cache_breakpoint provider random_seed raw reasoning reasoning_content
reasoning_format regex repeat_last_n repeat_penalty response_fields return_progress route safe_prompt safety_settings
sampler_order sampler_priority samplers search_parameters session_id store stream_usage system t_max_predict_ms
temperature_last template tfs_z think thinking thinking_blocks thinking_budget timeout timings_per_token tool_call_id
tool_calls tool_ids top_a transforms truncation ttl type typical typical_p usage user_id uuid variables verbose
xtc_probability xtc_threshold
"""
KNOWN_STRANGERS = frozenset({*WITHOUT_EFFECT, *VLLM_IGNORED, *SENT_BY_CLIENTS.split()})
"""Ignored fields that have a series of their own in the metric; all others share one."""
