"""Batches in the database. What has been saved is on the disk."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.protocol.batches import Batch
from llava_api.storage.database import Database


class Progress(BaseModel):
    """What the server keeps of an open batch besides what its owner sees."""

    output_id: str = ""
    """The output that is being written; "" before the first request runs."""
    error_id: str = ""
    output_seconds: int | None = None
    """How long the two files are kept."""
    late: bool = False
    """Whether it has expired, and requests that did not run are named in the error file."""
    losses: dict[int, int] = {}
    """Number of a line -> how often the engine was lost while it ran."""


@dataclass(slots=True)
class StoredBatch:
    owner: str
    """Name of the API key that it belongs to; "" if the server has no keys."""
    batch: Batch
    progress: Progress


class BatchStore:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, made: StoredBatch, most_open: int | None) -> None:
        """Raises InvalidRequest if its owner has too many open batches."""

        def work(connection: sqlite3.Connection) -> None:
            (count,) = connection.execute(
                "SELECT count(*) FROM batches WHERE owner = ? AND open", (made.owner,)
            ).fetchone()
            if most_open is not None and count >= most_open:
                message = f"You may have {most_open} open batches, and have {count}: wait until one has ended."
                raise InvalidRequest(message, code=ErrorCode.TOO_MANY_BATCHES, status=429)
            connection.execute(
                "INSERT INTO batches (id, owner, open, batch, progress) VALUES (?, ?, 1, ?, ?)",
                (made.batch.id, made.owner, made.batch.model_dump_json(), made.progress.model_dump_json()),
            )

        await self.database.run(work)

    async def get(self, batch_id: str, owner: str) -> Batch | None:
        """None if there is no such batch, or it belongs to another owner."""
        found = await self.database.run(
            lambda connection: connection.execute(
                "SELECT batch FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
            ).fetchone()
        )
        return None if found is None else Batch.model_validate_json(found[0])

    async def list(self, owner: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """Up to ``limit`` batches, the newest first, and whether there are more."""
        text = "SELECT batch FROM batches WHERE owner = ?"
        found, has_more = await self.database.page(text, [owner], after=after, limit=limit)
        return [Batch.model_validate_json(row[0]) for row in found], has_more

    async def open(self) -> Sequence[StoredBatch]:
        """All batches that have not ended, the oldest first."""
        found = await self.database.run(
            lambda connection: connection.execute(
                "SELECT owner, batch, progress FROM batches WHERE open ORDER BY id"
            ).fetchall()
        )
        return [
            StoredBatch(owner, Batch.model_validate_json(batch), Progress.model_validate_json(progress))
            for owner, batch, progress in found
        ]


def save(connection: sqlite3.Connection, stored: StoredBatch, *, open: bool = True) -> None:
    """In the caller's transaction."""
    connection.execute(
        "UPDATE batches SET open = ?, batch = ?, progress = ? WHERE id = ?",
        (open, stored.batch.model_dump_json(), stored.progress.model_dump_json(), stored.batch.id),
    )
