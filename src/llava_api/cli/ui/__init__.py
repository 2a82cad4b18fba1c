"""``llava-api ui``: a chat page in the browser, a client of any OpenAI-compatible API.

Only ``page`` and ``web`` need Gradio, which is an optional extra; all decisions are made in the other modules.
"""
