"""Image files by hand: the pieces from which the good ones and the bad ones of the tests are put together."""

import io
import random
import struct
import zlib
from collections.abc import Iterable

from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
RED = Image.new("RGB", (40, 20), (255, 0, 0))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    """RGB that does not compress, the same in every run: nearly all of its file is pixel data."""
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))


def good_files() -> dict[str, bytes]:
    """A valid file of every kind that the server takes."""
    image = noise(48, 32)
    return {
        "jpeg": encoded(image, "JPEG"),
        "progressive jpeg": encoded(image, "JPEG", progressive=True),
        "png": encoded(image, "PNG"),
        "webp": encoded(image, "WEBP"),
        "lossless webp": encoded(image, "WEBP", lossless=True),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
    }


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, compressed: bytes, bits: int = 8, colour: int = 2, chunks: Iterable[bytes] = ()
) -> bytes:
    """``colour``: PNG's colour type (0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA)."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        (PNG_MAGIC, png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", compressed), png_chunk(b"IEND"))
    )


def png_of_rows(rows: list[bytes], width: int, bits: int, colour: int, chunks: Iterable[bytes] = ()) -> bytes:
    """``rows``: the packed samples of each row, without the filter byte."""
    return png(width, len(rows), zlib.compress(b"".join(b"\0" + row for row in rows)), bits, colour, chunks)


def zlib_zeros(count: int) -> bytes:
    """The zlib stream of ``count`` zero bytes, in no time: one compressed MiB repeated, its checksum known.

    After a full flush a deflate stream goes on as if at its start, so the pieces can be put behind one another. The
    Adler-32 of zeros is 1 and, above it, their count.
    """
    step = 1 << 20
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = engine.compress(bytes(step)) + engine.flush(zlib.Z_FULL_FLUSH)
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = engine.compress(bytes(count % step)) + engine.flush()
    return b"\x78\xda" + piece * (count // step) + rest + struct.pack(">I", (count % 65521) << 16 | 1)


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def behind_start(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments in front of its own."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def exif(entries: Iterable[tuple[int, int, int, bytes]], next_directory: int = 0, rest: bytes = b"") -> bytes:
    """An EXIF block of one directory, at offset 8 of its TIFF part.

    ``entries``: tag, TIFF type, count, and the value or its offset (four bytes).
    """
    listed = [struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries]
    directory = struct.pack(">H", len(listed)) + b"".join(listed) + struct.pack(">I", next_directory)
    return b"Exif\0\0MM\0*\0\0\0\x08" + directory + rest


def bmp(
    width: int,
    height: int,
    data: bytes,
    bits: int = 24,
    compression: int = 0,
    palette: bytes = b"",
    header_size: int = 40,
    colours: int = 0,
    offset: int | None = None,
) -> bytes:
    """``compression``: 0 none, 1 RLE8, 2 RLE4, 3 bit fields, 4 JPEG, 5 PNG. ``offset``: where the pixels start."""
    start = 14 + 40 + len(palette) if offset is None else offset
    info = struct.pack(
        "<IiiHHIIiiII", header_size, width, height, 1, bits, compression, len(data), 2835, 2835, colours, 0
    )
    return (
        b"BM"
        + struct.pack("<IHHI", (14 + len(info) + len(palette) + len(data)) % 2**32, 0, 0, start)
        + info
        + palette
        + data
    )


def gif(width: int, height: int, *blocks: bytes, palette: bytes = b"\0\0\0\xff\0\0") -> bytes:
    """A GIF of two colours. ``blocks``: what follows the palette; see ``gif_frame``."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + palette + b"".join(blocks)


def gif_frame(width: int, height: int, data: bytes = b"\x02\x4c\x01\0", left: int = 0, top: int = 0) -> bytes:
    """One frame; ``data``: its LZW sub-blocks, by default those of a single pixel of colour 1."""
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02" + data


def sub_blocks(data: bytes, end: bytes = b"\0") -> bytes:
    pieces = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + end


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def box(kind: bytes, data: bytes) -> bytes:
    """A box of the ISO media files (HEIC, AVIF, MP4, JPEG 2000)."""
    return struct.pack(">I", len(data) + 8) + kind + data
