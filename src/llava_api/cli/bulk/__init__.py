"""Work in bulk at any OpenAI-compatible API: ``llava-api batch run``, ``llava-api caption`` and ``llava-api eval``."""
