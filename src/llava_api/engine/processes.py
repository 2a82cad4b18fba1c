"""The engine's processes: tied to this one, looked at from outside, and ended for certain."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable

import psutil

PR_SET_PDEATHSIG = 1
"""``prctl`` option, from <linux/prctl.h>."""


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that happens.

    To be called in a process that ``multiprocessing`` has started; elsewhere it does nothing. Linux sends the signal
    when the *thread* ends that started the process, so that thread must live as long (``vllm_start``).
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        die_with(parent.pid)


def die_with(parent_id: int | None) -> None:
    """The same in a process that ``parent_id`` has forked in some other way."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        # Not Linux: the parent's orderly end is all there is.
        return
    if os.getppid() != parent_id:
        # It ended before the kernel was told.
        os._exit(1)


def family(process_ids: Iterable[int]) -> list[psutil.Process]:
    """The processes and all that they have started; those that are gone are left out."""
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
    """psutil knows a process by its time of birth as well: a number that was given to another is left alone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill_children() -> None:
    """End all that this process has started, but for Python's resource tracker.

    It ends by itself after the last of the others, and gives back the shared memory that they could not.
    """
    # Twice, and a moment between: a thread may be just about to start one.
    for _ in range(2):
        kill_all(child for child in psutil.Process().children(recursive=True) if not tracks_resources(child))
        time.sleep(0.1)


def tracks_resources(process: psutil.Process) -> bool:
    try:
        # Its name alone stands in the warning options of all children (vllm_options).
        return "from multiprocessing.resource_tracker import" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True
