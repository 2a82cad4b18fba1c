"""Python, processors, memory, shared memory, disks, open files."""

import platform
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llava_api.cli import machine
from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.start_checks import SHARED_MEMORY_BYTES, megabytes, needs_shared_memory
from llava_api.settings import Settings
from llava_api.units import readable_size

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY = 3 * 10**9
"""For three processes with torch and vLLM and 1 GiB of KV cache, measured with the demo checkpoint."""
SHARED_MEMORY_WISHED = 400 * 2**20
"""Both ring buffers between vLLM's processes: 10 chunks of 16 and of 24 MiB."""
DISK_BYTES = 20 * 10**9
"""For a checkpoint: a 7B model in 16 bits and some room."""
TEMPORARY_BYTES = 10**9
FILES_WISHED = 4096
"""Two for each connection and a few hundred for the server itself."""
FILES_NEEDED = 512


def python_version(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    text = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return fail("python", text, "llava-api needs Python 3.11 or newer: make the environment again with one")
    return ok("python", f"{text} ({platform.system()} {platform.machine()})")


def processors(on_gpu: bool | None, cores: int, features: frozenset[str], machine_name: str) -> Finding:
    wide = next((name for name in ("avx512f", "avx2", "sve", "asimd") if name in features), None)
    found = f"{cores} cores{'' if wide is None else f', {wide}'}"
    if machine_name in ("x86_64", "AMD64") and not on_gpu and features and wide is None:
        return fail("cpu", found, "vLLM's CPU build needs AVX2 or AVX-512: use a newer processor, or a GPU")
    if not on_gpu and wide == "avx2":
        return warn("cpu", found, "without AVX-512 bfloat16 is slow: --dtype float32 may be faster")
    if cores < 2:
        return warn("cpu", found, "server, engine and image decoding share one core: give them two or more")
    return ok("cpu", found)


def memory(found: machine.Memory | None) -> Finding:
    if found is None:
        return warn("memory", "the system does not say", "make sure that weights and KV cache fit")
    place = "in this container" if found.of_container else "on this machine"
    text = f"{readable_size(found.available)} free of {readable_size(found.total)} {place}"
    if found.available < LEAST_MEMORY:
        return fail("memory", text, f"even the demo checkpoint takes {readable_size(LEAST_MEMORY)}: make room")
    return ok("memory", text)


def shared_memory(settings: Settings, on_gpu: bool | None, place: Path = machine.SHARED_MEMORY) -> Finding:
    needed = needs_shared_memory(settings, on_gpu=bool(on_gpu))
    free = machine.free_bytes(place) if place.is_dir() else None
    if free is None:
        if needed:
            return fail("shared memory", f"there is no {place}", "mount a tmpfs there: the engine's processes need it")
        return ok("shared memory", f"there is no {place}, and it is not needed")
    text = f"{megabytes(free)} free in {place}"
    more = (
        "docker run --shm-size 1g or --ipc host; in Kubernetes an emptyDir of medium Memory at /dev/shm; remove what "
        "programs that have ended left there"
    )
    least, wished = megabytes(SHARED_MEMORY_BYTES), megabytes(SHARED_MEMORY_WISHED)
    if needed and free < SHARED_MEMORY_BYTES:
        return fail("shared memory", text, f"the engine's processes need {least}, better {wished}: {more}")
    if needed and free < SHARED_MEMORY_WISHED:
        return warn("shared memory", text, f"with {wished} no batch of images has to take a socket: {more}")
    return ok("shared memory", text)


def disks(settings: Settings, needed: int = DISK_BYTES) -> Iterator[Finding]:
    """``needed``: bytes for a checkpoint."""
    yield disk("cache folder", Path(settings.cache_dir).expanduser(), needed, "--cache-dir")
    yield disk("download folder", download_folder(settings), needed, "--download-dir")
    yield disk("temporary folder", Path(tempfile.gettempdir()), min(needed, TEMPORARY_BYTES), "TMPDIR")


def download_folder(settings: Settings) -> Path:
    if settings.download_dir is not None:
        return Path(settings.download_dir).expanduser()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def disk(check: str, folder: Path, needed: int, flag: str) -> Finding:
    free = machine.free_bytes(folder)
    if free is None:
        return warn(check, f"{folder}: the free space is unknown", f"name another with {flag}")
    text = f"{folder}: {readable_size(free)} free"
    if free < needed / 20:
        return fail(check, text, f"make room, or name another with {flag}")
    if free < needed:
        return warn(check, text, f"a 7B checkpoint takes 14 GB: make room, or name another with {flag}")
    return ok(check, text)


def open_files(limit: int | None = None) -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    text = "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit:,}"
    if limit == resource.RLIM_INFINITY or limit >= FILES_WISHED:
        return ok("open files", text)
    advice = (
        f"raise it to {FILES_WISHED} or more (ulimit -n; LimitNOFILE= of a systemd unit): each connection takes one"
    )
    return (fail if limit < FILES_NEEDED else warn)("open files", text, advice)
