"""Measurements: this server beside vLLM's own, and each of its parts alone. Not shipped."""
