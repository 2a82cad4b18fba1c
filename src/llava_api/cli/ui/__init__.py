"""``llava-api ui``: a chat page in the browser, for any OpenAI-compatible base URL.

A client of the API, as any other: it knows neither the server nor the engine. ``page`` and ``web`` alone import
Gradio, which is an optional extra; whatever decides something stands beside them and needs no Gradio.
"""
