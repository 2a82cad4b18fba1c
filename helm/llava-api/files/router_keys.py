"""Loaded by the LiteLLM proxy: the API keys are the servers' own, and each server gets the caller's key.

So a server's turns, limits and metrics go by the caller, not by the router. The keys are the files of a mounted secret,
as llava-api reads them: a file's name is the key's, its content the key or sha256: and the key's hash. Without the
folder (LLAVA_API_KEY_DIR) everybody is let through, as the servers do.
"""

import hashlib
import hmac
import os
from pathlib import Path

from fastapi import Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

FOLDER = os.environ.get("LLAVA_API_KEY_DIR")
HASHED = "sha256:"
SHORTEST = 16
presented: dict[str, str] = {}
"""Digest -> key, of callers that were let through; LiteLLM hands its hooks no more than what authenticate returns."""


def known_digests(folder: str) -> dict[str, str]:
    """A key's name -> its digest. Read each time: the secret may change."""
    found = {}
    for entry in Path(folder).iterdir():
        # Kubernetes keeps the real files of a mounted secret in folders that start with dots.
        if not entry.name.startswith(".") and entry.is_file():
            text = entry.read_text(encoding="utf-8").strip()
            if len(text) < SHORTEST or not text.isascii():
                # No key is sent to the servers either; an empty one would let everybody in.
                continue
            hashed = text.removeprefix(HASHED) if text.startswith(HASHED) else hashlib.sha256(text.encode()).hexdigest()
            found[entry.name] = hashed
    return found


async def authenticate(request: Request, api_key: str | None) -> UserAPIKeyAuth:
    if not FOLDER:
        return UserAPIKeyAuth(key_alias="anonymous")
    digest = hashlib.sha256((api_key or "").encode()).hexdigest()
    for name, known in known_digests(FOLDER).items():
        if hmac.compare_digest(known, digest):
            presented[digest] = api_key or ""
            return UserAPIKeyAuth(api_key=digest, key_alias=name, user_id=name)
    raise ProxyException(
        message="Incorrect API key: send one as Authorization: Bearer KEY.",
        type="invalid_request_error",
        param=None,
        code=401,
        openai_code="invalid_api_key",
    )


class CallersKey(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):  # type: ignore[no-untyped-def]
        if user_api_key_dict.api_key in presented:
            data["api_key"] = presented[user_api_key_dict.api_key]
        return data


callers_key = CallersKey()
