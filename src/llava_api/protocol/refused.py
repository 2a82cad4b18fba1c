"""Fields of OpenAI's API or of vLLM's server that are refused here: why, and what to do."""

OLD_TOOLS = {
    "functions": "functions is the old form of tools: send tools instead.",
    "function_call": "function_call is the old form of tools: send tools and tool_choice instead.",
}

NOT_LLAVA = {
    "audio": "LLaVA takes and makes no audio: leave audio out.",
    "moderation": "This server does not moderate: leave moderation out.",
    "prediction": "Predicted outputs are not supported: leave prediction out.",
    "prompt_cache_options": "Prompts are always cached: leave prompt_cache_options out.",
    "prompt_cache_retention": "Prompts are cached as long as there is room: leave prompt_cache_retention out.",
    "reasoning_effort": "LLaVA does not reason before it answers: leave reasoning_effort out.",
    "verbosity": "LLaVA has no levels of verbosity: say in the prompt how long the answer should be.",
    "web_search_options": "LLaVA does not search the web: leave web_search_options out.",
}

OWN_PROMPT = "This server writes prompts as the checkpoint was trained: leave {} out."
OWN_IMAGES = "This server prepares images as the checkpoint was trained: leave {} out."
OWN_TOKENS = "This server turns tokens into text as the checkpoint's tokenizer says: leave {} out."
FORMATS = "{} belongs to vLLM's server: send response_format or tools instead."
INTERNAL = "{} is internal to the engine, and callers cannot set it: leave it out."
NOT_SUPPORTED = "{} belongs to vLLM's server and is not supported here: leave it out."

VLLM = {
    name: sentence.format(name)
    for sentence, names in (
        (OWN_PROMPT, ("add_special_tokens", "chat_template", "chat_template_kwargs", "documents")),
        (OWN_PROMPT, ("truncate_prompt_tokens", "truncation_side")),
        (OWN_IMAGES, ("media_io_kwargs", "mm_processor_kwargs")),
        (OWN_TOKENS, ("spaces_between_special_tokens",)),
        (FORMATS, ("structured_outputs", "structural_tag")),
        (FORMATS, ("guided_json", "guided_regex", "guided_choice", "guided_grammar")),
        (INTERNAL, ("cache_salt", "ec_transfer_params", "kv_transfer_params", "priority")),
        (INTERNAL, ("prompt_embeds", "request_id", "vllm_xargs")),
        (NOT_SUPPORTED, ("allowed_token_ids", "bad_words", "include_reasoning", "include_stop_str_in_output")),
        (NOT_SUPPORTED, ("length_penalty", "logits_processors", "logprob_token_ids", "prompt_logprobs")),
        (NOT_SUPPORTED, ("repetition_detection", "return_token_ids", "return_tokens_as_token_ids")),
        (NOT_SUPPORTED, ("thinking_token_budget", "use_beam_search", "watermarking")),
    )
    for name in names
}
