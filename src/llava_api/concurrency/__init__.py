"""Whose work is next, and work that several callers share."""
