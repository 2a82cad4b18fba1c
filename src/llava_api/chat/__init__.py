"""From a request to an engine request, and from the engine's output to a reply."""
