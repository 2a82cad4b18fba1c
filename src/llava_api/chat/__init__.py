"""The use case: a chat request becomes an engine request, and what the engine yields becomes a reply."""
