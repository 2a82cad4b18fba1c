"""An OpenAI-compatible REST inference API for LLaVA-1.5 and LLaVA-1.6 (NeXT) checkpoints, on vLLM."""

__version__ = "0.1.0"
