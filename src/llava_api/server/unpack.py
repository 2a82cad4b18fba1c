"""Unpacks request bodies with a ``Content-Encoding``, in pieces, so that a small body cannot fill the memory."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

from llava_api.errors import InvalidRequest, RequestTooLarge

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Encodings -> zlib's ``wbits``. ``deflate`` is zlib's format in HTTP."""
PIECE_BYTES = 1_000_000
"""Most bytes that are unpacked before the event loop serves others."""
DAMAGED = "The request's body is not whole, or not packed as its Content-Encoding says: pack it again."


async def unpacked(
    parts: AsyncIterator[bytes], encoding: str, too_large: RequestTooLarge, most: int
) -> AsyncGenerator[bytes, None]:
    """Raises ``too_large`` for more than ``most`` packed bytes, and InvalidRequest. The caller counts the result."""
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    packed = 0
    try:
        async for part in parts:
            packed += len(part)
            if packed > most:
                raise too_large
            while part:
                yield unpacker.decompress(part, PIECE_BYTES)
                part = unpacker.unconsumed_tail
                await asyncio.sleep(0)
        yield unpacker.flush()
    except zlib.error as error:
        raise InvalidRequest(DAMAGED) from error
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest(DAMAGED)
