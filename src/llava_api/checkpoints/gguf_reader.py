"""gguf's reader, which ends at the end of the file. A damaged file may promise 10^18 entries."""

from typing import Any

from gguf import GGUFReader

MOST_READS = 5_000_000
"""Of the metadata, whose values are read one by one. Llama 3's tokens, their types and its merges take a million."""


class Reader(GGUFReader):  # type: ignore[misc]
    reads = 0

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        found = super()._get(offset, dtype, count, override_order)
        self.reads += 1
        if len(found) < count or self.reads > MOST_READS:
            raise ValueError("the metadata does not end")
        return found
