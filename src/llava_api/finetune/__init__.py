"""Training on one's own data, with the prompts, token ids and pixels of the server."""
