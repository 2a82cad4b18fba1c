"""Right answers of OpenAI's API, small and with each kind of field in them, for the tests of its schemas."""

from typing import Any

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"image_tokens": 5}}
TOKEN = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT_REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
            "logprobs": {"content": [TOKEN | {"top_logprobs": [TOKEN]}], "refusal": None},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "é", "logprobs": None, "finish_reason": "length"}],
    "usage": USAGE,
}
LEGACY_LOGPROBS = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": ["é"], "top_logprobs": [{"é": -0.5}]}
MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "us", "max_model_len": 2048, "parent": None}
ERROR = {"error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}}
TEXT = {"type": "output_text", "text": "é", "annotations": [], "logprobs": []}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [TEXT]}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "completed_at": 2,
    "background": False,
    "status": "completed",
    "error": None,
    "frequency_penalty": 0,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": "m",
    "output": [MESSAGE, {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}],
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [{"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": None}],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11,
    },
    "user": None,
}

BEGUN = RESPONSE | {"status": "in_progress", "output": [], "usage": None}
PLACE = {"item_id": "msg_1", "output_index": 0}
EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": BEGUN},
    {"type": "response.in_progress", "response": BEGUN},
    {"type": "response.output_item.added", "output_index": 0, "item": MESSAGE | {"content": []}},
    {"type": "response.content_part.added", **PLACE, "content_index": 0, "part": TEXT},
    {"type": "response.output_text.delta", **PLACE, "content_index": 0, "delta": "é", "logprobs": []},
    {"type": "response.output_text.done", **PLACE, "content_index": 0, "text": "é", "logprobs": []},
    {"type": "response.content_part.done", **PLACE, "content_index": 0, "part": TEXT},
    {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
    {"type": "response.function_call_arguments.delta", **PLACE, "delta": "{}"},
    {"type": "response.function_call_arguments.done", **PLACE, "arguments": "{}"},
    {"type": "response.completed", "response": RESPONSE},
]
WRONG = {"type": "error", "code": "server_error", "message": "No.", "param": None}
FAILED = {"type": "response.failed", "response": RESPONSE | {"status": "failed"}}
CUT = {"type": "response.incomplete", "response": RESPONSE | {"status": "incomplete"}}
