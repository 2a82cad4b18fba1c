"""One file for one group of endpoints. A new file is entered here."""

from llava_api.server.routes import chat, completions, explain, probes, responses, server_info

ENDPOINTS = (
    *chat.ENDPOINTS,
    *responses.ENDPOINTS,
    *completions.ENDPOINTS,
    *explain.ENDPOINTS,
    *server_info.ENDPOINTS,
    *probes.ENDPOINTS,
)
"""All endpoints except those of ``docs.py``, which describes these."""
