"""One file for one group of endpoints. A new file is entered here."""

from llava_api.server.routes import chat, completions, explain, health, metrics, models, responses, version

ENDPOINTS = (
    *chat.ENDPOINTS,
    *responses.ENDPOINTS,
    *completions.ENDPOINTS,
    *explain.ENDPOINTS,
    *models.ENDPOINTS,
    *health.ENDPOINTS,
    *version.ENDPOINTS,
    *metrics.ENDPOINTS,
)
"""All endpoints but those of ``routes/docs.py``, which describes these."""
