"""Sizes for people."""


def readable_size(size: int) -> str:
    """``size`` in bytes -> such as 1.4 GB, 9.4 MB or 20.0 kB."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
