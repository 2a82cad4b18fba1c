"""``llava-api doctor``: each check is a small function that returns a ``Finding``."""
