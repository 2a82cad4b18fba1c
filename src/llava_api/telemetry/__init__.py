"""What an operator sees: metrics, one log line a request, traces. Knows no web framework and no vLLM."""
