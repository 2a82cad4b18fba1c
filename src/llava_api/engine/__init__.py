"""The engine: what the rest of the server asks of it, and vLLM behind that."""
