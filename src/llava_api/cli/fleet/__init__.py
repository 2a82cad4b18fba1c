"""``llava-api fleet``: several models under one address on one machine."""
