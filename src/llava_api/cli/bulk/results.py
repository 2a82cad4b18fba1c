"""The output: a JSONL file that only grows while requests are under way, so that any kill leaves whole lines."""

import fcntl
import os
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import BinaryIO

import orjson

from llava_api.cli.bulk.job import ItemFailed, Job, Line
from llava_api.errors import StartupError


class ResultFile:
    """Opens the file, keeps every whole line and cuts one that is not whole.

    Raises StartupError for a file that another program wrote, that another process writes, or that cannot be written.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.places: dict[Hashable, list[int]] = {}
        """Where the lines of a key start. Two questions may have the same key."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is with the operating system when ``add`` returns.
            self.file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise self.unwritable(error) from error
        try:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartupError(f"another process is writing {path}: wait for it, or stop it") from None
            self.size = self.read(job)
            self.file.truncate(self.size)
        except OSError as error:
            self.close()
            raise self.unwritable(error) from error
        except StartupError:
            self.close()
            raise

    def read(self, job: Job) -> int:
        """Note the lines that there are. The size of those that are whole."""
        size = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    if not line.endswith(b"\n"):
                        if not (line.startswith(job.line_start) or job.line_start.startswith(line)):
                            raise ValueError
                        break
                    self.places.setdefault(job.key_of(orjson.loads(line)), []).append(size)
                except (ValueError, LookupError, TypeError):
                    raise StartupError(
                        f"{self.path} line {number} is not a line that this command writes: name another file"
                    ) from None
                size += len(line)
        return size

    def done(self) -> Counter[Hashable]:
        """How many lines each key has."""
        return Counter({key: len(places) for key, places in self.places.items()})

    def add(self, key: Hashable, line: Line) -> None:
        """Raises ItemFailed for what cannot be a line, and StartupError if it cannot be written.

        After an error the file is as it was.
        """
        try:
            data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:
            raise ItemFailed("invalid_response", "The answer is nested too deeply.") from error
        try:
            written = self.file.write(data)
            if written != len(data):
                self.file.write(data[written:])
        except OSError as error:
            # A part of the line may be written, and the requests under way may still add theirs.
            self.file.truncate(self.size)
            raise self.unwritable(error) from error
        self.places.setdefault(key, []).append(self.size)
        self.size += len(data)

    def sort(self, keys: Iterable[Hashable]) -> None:
        """Put the lines into the order of ``keys``, in which each line has its key: all of them or none."""
        order = [places.pop(0) for places in map(self.places.get, keys) if places]
        if order == sorted(order):
            return
        sorted_path = self.path.with_name(f"{self.path.name}.sorting")
        try:
            with open(self.path, "rb") as lines, open(sorted_path, "wb") as sorted_file:
                for place in order:
                    lines.seek(place)
                    sorted_file.write(lines.readline())
                os.fchmod(sorted_file.fileno(), os.fstat(lines.fileno()).st_mode & 0o777)
                sorted_file.flush()
                os.fsync(sorted_file.fileno())
            os.replace(sorted_path, self.path)
        except OSError as error:
            sorted_path.unlink(missing_ok=True)
            raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> StartupError:
        return StartupError(f"{self.path} cannot be written ({error.strerror})")

    def close(self) -> None:
        self.file.close()
