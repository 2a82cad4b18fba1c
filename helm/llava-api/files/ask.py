"""The pod of `helm test`: asks every model at every address about an image. Ends with an error if one of them fails."""

import json
import os
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

KEYS = Path(os.environ.get("KEYS", "/etc/llava-api/keys"))
SECONDS = 300


def plain_key() -> str | None:
    """The first key that is not kept as a hash; None where keys are not asked for."""
    if not KEYS.is_dir():
        return None
    for entry in sorted(KEYS.iterdir()):
        if not entry.name.startswith(".") and entry.is_file():
            text = entry.read_text().strip()
            if not text.startswith("sha256:"):
                return text
    sys.exit("All API keys are kept as hashes, so there is none to ask with. Set tests.enabled: false.")


def call(url: str, key: str | None, body: dict[str, object] | None = None) -> dict[str, object]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urlopen(Request(url, json.dumps(body).encode() if body else None, headers), timeout=SECONDS) as reply:
            return json.load(reply)
    except HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace')}")


def main() -> None:
    key = plain_key()
    for base in os.environ["BASE_URLS"].split():
        models = [model["id"] for model in call(f"{base}/models", key)["data"]]
        if not models:
            sys.exit(f"{base} lists no models.")
        for model in models:
            image = {"type": "image_url", "image_url": {"url": os.environ["IMAGE"]}}
            content = [{"type": "text", "text": "What is in this image?"}, image]
            question = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32}
            answer = call(f"{base}/chat/completions", key, question)["choices"][0]["message"]["content"]
            print(f"{base} {model}: {answer}", flush=True)
            if not answer or not answer.strip():
                sys.exit(f"{model} said nothing.")


main()
