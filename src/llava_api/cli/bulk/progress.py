"""How far the work is: a bar in a terminal, else a line now and then, on standard error."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0


class Counts:
    def __init__(self, total: int, before: int) -> None:
        """``before``: items that an earlier run finished."""
        self.total = total
        self.before = before
        self.done = before
        self.failed = 0
        self.images = 0
        self.started = time.monotonic()

    def text(self) -> str:
        seconds = max(time.monotonic() - self.started, 0.001)
        finished = self.done - self.before + self.failed
        left = self.total - self.done - self.failed
        rest = f", {duration(left * seconds / finished)} left" if finished and left else ""
        return f"{self.failed} failed, {self.images / seconds:.1f} images/s{rest}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Shown:
    """Shows ``counts`` from ``__enter__`` to ``__exit__``; ``update`` is called after each item."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        console = Console(stderr=True)
        self.bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console, transient=True
        )
        self.in_terminal = console.is_terminal
        self.last_line = time.monotonic()

    def __enter__(self) -> "Shown":
        if self.in_terminal:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.counts.total)
            self.update()
        return self

    def __exit__(self, *ignored: object) -> None:
        if self.in_terminal:
            self.bar.stop()

    def update(self) -> None:
        counts, now = self.counts, time.monotonic()
        if self.in_terminal:
            self.bar.update(self.task, completed=counts.done + counts.failed, description=counts.text())
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(f"{counts.done} of {counts.total} done, {counts.text()}", file=sys.stderr, flush=True)
