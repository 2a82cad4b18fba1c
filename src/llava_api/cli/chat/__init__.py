"""``llava-api chat``: talk to a model about pictures. A client: it speaks to any OpenAI-compatible API."""
