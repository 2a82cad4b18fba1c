"""Sizes and times for people."""


def readable_size(size: int) -> str:
    """``size`` in bytes -> such as 1.4 GB, 9.4 MB or 20.0 kB."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def readable_time(seconds: float) -> str:
    """-> such as 90 s, 15 min, 7 h or 3 d."""
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
