"""Fields that callers know from OpenAI's API or from vLLM's server, and that are refused here: why, and what to do."""

OLD_TOOLS = {
    "functions": "functions is the old form of tools: send tools instead.",
    "function_call": "function_call is the old form of tools: send tools and tool_choice instead.",
}

NOT_LLAVA = {
    "audio": "LLaVA neither hears nor speaks: leave audio out.",
    "moderation": "This server does not moderate: leave moderation out.",
    "prediction": "Predicted outputs are not supported: leave prediction out.",
    "prompt_cache_options": "Prompts are cached without being asked: leave prompt_cache_options out.",
    "prompt_cache_retention": "Prompts are cached as long as there is room: leave prompt_cache_retention out.",
    "reasoning_effort": "LLaVA does not reason before it answers: leave reasoning_effort out.",
    "verbosity": "LLaVA has no levels of verbosity: say in the prompt how long the answer should be.",
    "web_search_options": "LLaVA does not search the web: leave web_search_options out.",
}

OWN_PROMPT = "The prompt is written here as the checkpoint was trained: leave {} out."
OWN_PICTURES = "Pictures are prepared here as the checkpoint was trained: leave {} out."
OWN_TOKENS = "The answer's tokens are turned into text here as the checkpoint's tokenizer says: leave {} out."
FORMATS = "{} belongs to vLLM's server: send response_format or tools instead."
INSIDE = "{} reaches into the engine, which no caller may: leave it out."
NOT_OFFERED = "{} belongs to vLLM's server and is not offered here: leave it out."

VLLM_SENTENCES = {
    OWN_PROMPT: (
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "truncate_prompt_tokens",
        "truncation_side",
    ),
    OWN_PICTURES: ("media_io_kwargs", "mm_processor_kwargs"),
    OWN_TOKENS: ("spaces_between_special_tokens",),
    FORMATS: (
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structural_tag",
    ),
    INSIDE: (
        "cache_salt",
        "ec_transfer_params",
        "kv_transfer_params",
        "priority",
        "prompt_embeds",
        "request_id",
        "vllm_xargs",
    ),
    NOT_OFFERED: (
        "allowed_token_ids",
        "bad_words",
        "include_reasoning",
        "include_stop_str_in_output",
        "length_penalty",
        "logits_processors",
        "logprob_token_ids",
        "prompt_logprobs",
        "repetition_detection",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "thinking_token_budget",
        "use_beam_search",
        "watermarking",
    ),
}
VLLM = {name: sentence.format(name) for sentence, names in VLLM_SENTENCES.items() for name in names}
