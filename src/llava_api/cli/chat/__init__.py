"""``llava-api chat``: a client of any OpenAI-compatible API, in a terminal."""
