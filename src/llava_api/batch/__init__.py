"""Batches of requests: their files' lines, their states on disk, and what runs them."""
