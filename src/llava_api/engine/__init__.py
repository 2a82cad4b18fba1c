"""The engine's interface, and vLLM as the engine."""
