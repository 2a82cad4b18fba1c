"""Threads for blocking work, in which callers take turns.

Work waits in an ``Admission`` and not in the executor, whose queue has no bound, knows no callers and keeps work whose
callers have left.
"""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from llava_api.concurrency.admission import Admission
from llava_api.concurrency.single_flight import Flight, SingleFlight

Result = TypeVar("Result")


class FairThreads(Generic[Result]):
    """``admission`` decides whose work is next; its slots are the threads, and any that are to be given work ahead.

    Work given ahead waits in the executor, so that a thread that becomes free need not wait for the event loop.
    """

    def __init__(self, threads: int, name: str, admission: Admission) -> None:
        self.admission = admission
        self.work: SingleFlight[Result] = SingleFlight(admission)
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, caller: str, work: Callable[[], Result], key: Hashable = None) -> Result:
        """Return the result of ``work``, or raise its error. Work of equal ``key`` is done once at a time. Raises Busy.

        Work that has lost all its callers is not begun. A running thread cannot be stopped, so its work keeps the slot
        until it has ended.
        """
        return await self.work.do(caller, lambda: self.begin(work), key)

    def begin(self, work: Callable[[], Result]) -> Flight[Result]:
        submitted = self.executor.submit(work)
        return Flight(asyncio.wrap_future(submitted), submitted.cancel)

    def close(self) -> None:
        """Cancel what waits, and end the threads after their present work."""
        self.admission.close()
        self.executor.shutdown(wait=False, cancel_futures=True)
