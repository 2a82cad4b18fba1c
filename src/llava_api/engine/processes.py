"""The engine's processes: bound to this one, looked at from outside, and ended."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable

import psutil

PR_SET_PDEATHSIG = 1
"""``prctl`` option, from <linux/prctl.h>."""


def die_with_parent(parent_id: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens.

    Does nothing unless ``multiprocessing`` started this process in process ``parent_id``. Linux sends the signal when
    the *thread* ends that started the process, so that thread must live as long as the parent (``vllm_start``).
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == parent_id:
        die_with(parent_id)


def die_with(parent_id: int) -> None:
    """As ``die_with_parent``, in a process that ``parent_id`` forked in some other way."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        # Not Linux: only the parent's orderly end can end this process.
        return
    if os.getppid() != parent_id:
        # The parent ended before the signal was set.
        os._exit(1)


def with_descendants(process_ids: Iterable[int]) -> list[psutil.Process]:
    """The processes and their descendants that still exist."""
    found: list[psutil.Process] = []
    for process_id in process_ids:
        try:
            process = psutil.Process(process_id)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def any_paused(processes: Iterable[psutil.Process]) -> bool:
    for process in processes:
        try:
            if process.status() == psutil.STATUS_STOPPED:
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """psutil compares the start time as well, so a process that was given the same id later is not killed."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill_children() -> None:
    """End all that this process has started, except Python's resource tracker.

    The tracker ends by itself after the others, and frees the shared memory that they could not free.
    """
    # Twice, because a thread may just be starting a process.
    for _ in range(2):
        kill_all(child for child in psutil.Process().children(recursive=True) if not tracks_resources(child))
        time.sleep(0.1)


def tracks_resources(process: psutil.Process) -> bool:
    try:
        # "resource_tracker" by itself is also in the warning options of all children (vllm_options).
        return "from multiprocessing.resource_tracker import" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True
