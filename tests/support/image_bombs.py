"""Small files that ask for much: pixels, memory, time. Data for ``bad_images``."""

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support.image_files import (
    RED,
    behind_start,
    bmp,
    encoded,
    exif,
    gif,
    gif_frame,
    jpeg_segment,
    noise,
    png,
    png_chunk,
    png_of_rows,
    sub_blocks,
    webp,
    webp_chunk,
    zlib_zeros,
)

Make = Callable[[], bytes]
ORIENTATION = 0x0112
COLOURS = b"".join(bytes((level, 0, 255 - level, 0)) for level in range(256))


def small_png(*chunks: bytes) -> bytes:
    return png_of_rows([b"\xff\0\0" * 4] * 4, 4, 8, 2, chunks)


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header tells another size than it has."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def too_large() -> dict[str, Make]:
    """To be refused by their headers, before a pixel is decoded."""
    jpeg = encoded(RED, "JPEG")
    return {
        "30000x30000 png, header": lambda: png(30_000, 30_000, zlib.compress(b"\0" * 1000)),
        "30000x30000 png, whole": lambda: png(30_000, 30_000, zlib_zeros(30_000 * 90_001)),
        "30000x30000 1 bit png, whole": lambda: png(30_000, 30_000, zlib_zeros(30_000 * 3751), 1, 0),
        "12000x12000 png, whole": lambda: png(12_000, 12_000, zlib_zeros(12_000 * 36_001)),
        "1x20000 png": lambda: png(1, 20_000, zlib_zeros(20_000 * 4)),
        "20000x1 png": lambda: png(20_000, 1, zlib_zeros(60_001)),
        "1x1000 png": lambda: png(1, 1000, zlib_zeros(1000 * 4)),
        "4294967295x4294967295 png": lambda: png(2**32 - 1, 2**32 - 1, zlib.compress(bytes(9))),
        "2147483648x1 png": lambda: png(2**31, 1, zlib.compress(bytes(9))),
        "65535x65535 jpeg": lambda: with_size(jpeg, 65_535, 65_535),
        "65535x65535 gif": lambda: gif(65_535, 65_535, gif_frame(1, 1), b";"),
        "gif frame outside": lambda: gif(2, 2, gif_frame(65_535, 65_535, left=9, top=9), b";"),
        "16384x16384 webp": lambda: webp(
            webp_chunk(b"VP8X", b"\0\0\0\0" + b"\xff\x3f\0" * 2), encoded(RED, "WEBP")[12:]
        ),
        "16777216x16777216 webp": lambda: webp(webp_chunk(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2)),
        "30000x30000 bmp": lambda: bmp(30_000, 30_000, bytes(1000)),
        "rle bmp of 30000x30000": lambda: bmp(30_000, 30_000, b"\0\1", 8, 1, COLOURS),
        "2147483647x1 bmp": lambda: bmp(2**31 - 1, 1, bytes(9)),
    }


def odd_sizes() -> dict[str, Make]:
    """No size at all, or one that the pixels behind it do not have."""
    jpeg, still = encoded(RED, "JPEG"), encoded(RED, "WEBP")
    return {
        "0x0 png": lambda: png(0, 0, zlib.compress(b"")),
        "0x9 png": lambda: png(0, 9, zlib.compress(bytes(9))),
        "9x0 png": lambda: png(9, 0, zlib.compress(b"")),
        "0x0 jpeg": lambda: with_size(jpeg, 0, 0),
        "40x0 jpeg": lambda: with_size(jpeg, 40, 0),
        "0x0 gif": lambda: gif(0, 0, gif_frame(0, 0), b";"),
        "0x0 bmp": lambda: bmp(0, 0, b""),
        "0x9 bmp": lambda: bmp(0, 9, bytes(99)),
        "9x0 bmp": lambda: bmp(9, 0, bytes(99)),
        "negative width bmp": lambda: bmp(-9, 9, bytes(999)),
        "0x0 webp": lambda: still.replace(struct.pack("<HH", 40, 20), bytes(4)),
        "bmp without enough rows": lambda: bmp(3000, 3000, bytes(10_000)),
        "gif of tiny data": lambda: gif(3000, 3000, gif_frame(3000, 3000), b";"),
    }


def too_few_rows() -> dict[str, Make]:
    """Whole files whose compressed data ends before their rows do: decoders fill up what is missing."""
    return {
        "jpeg said to be higher": lambda: with_size(encoded(RED, "JPEG"), 40, 4000),
        "png without enough rows": lambda: png(3000, 3000, zlib_zeros(9001 * 10)),
    }


def slow_to_read() -> dict[str, Make]:
    """Within the limits of bytes and pixels, and yet seconds to minutes of work for whoever decodes them naively."""
    jpeg = encoded(RED, "JPEG")
    return {
        # Pillow puts the pieces together one by one: the time grows with the square of their number.
        "exif in a million pieces": lambda: behind_start(jpeg, b"\xff\xe1\0\x09Exif\0\0x" * 1_400_000),
        "millions of empty comments": lambda: behind_start(jpeg, b"\xff\xfe\0\2" * 4_000_000),
        "millions of fill bytes": lambda: behind_start(jpeg, b"\xff" * 15_000_000),
        "a thousand scans of 16 megapixels": lambda: many_scans(4000, 4000, 3000),
        "twenty thousand scans of a megapixel": lambda: many_scans(1000, 1000, 20_000),
        "a million empty png chunks": lambda: small_png(png_chunk(b"teXt") * 1_200_000),
        "a million empty png pixel chunks": lambda: small_png(png_chunk(b"IDAT") * 1_200_000),
        "megabytes of gif comments": lambda: gif(1, 1, b"!\xfe" + sub_blocks(b"x" * 15_000_000), gif_frame(1, 1)),
        "millions of gif extensions": lambda: gif(1, 1, b"!\xf9\0" * 4_000_000, gif_frame(1, 1), b";"),
        "gif that does not end": lambda: gif(9, 9, gif_frame(9, 9, b"\1\0" * 6_000_000)),
        "gif of endless clear codes": lambda: gif(9, 9, gif_frame(9, 9, sub_blocks(b"\x24\x49\x92" * 4_000_000))),
        "rle bmp, one pixel at a time": lambda: bmp(4000, 1800, b"\1\7" * 7_200_000, 8, 1, COLOURS),
        "rle bmp of line ends": lambda: bmp(4000, 1800, b"\0\0" * 7_200_000, 8, 1, COLOURS),
        "rle4 bmp": lambda: bmp(4000, 4000, b"\xff\x12" * 60_000, 4, 2, COLOURS[:64]),
        "webp of a hundred thousand frames": lambda: webp(
            webp_chunk(b"VP8X", b"\2\0\0\0" + b"\x3f\0\0" * 2),
            webp_chunk(b"ANIM", bytes(6)),
            webp_frame() * 100_000,
        ),
        "64 megapixels of nothing": lambda: png(8000, 8000, zlib_zeros(8000 * 8001), 8, 0),
    }


def many_scans(width: int, height: int, times: int) -> bytes:
    """A progressive JPEG that refines its plain grey again and again: 31 bytes and a whole image's work each."""
    jpeg = encoded(Image.new("RGB", (width, height), "grey"), "JPEG", progressive=True)
    starts = [place for place in range(len(jpeg)) if jpeg[place : place + 2] == b"\xff\xda"]
    scans = [jpeg[start:end] for start, end in zip(starts, [*starts[1:], len(jpeg) - 2], strict=True)]
    return jpeg[:-2] + min(scans, key=len) * times + jpeg[-2:]


def webp_frame() -> bytes:
    still = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    return webp_chunk(b"ANMF", bytes(12) + b"\1\0\0\0" + still[12:])


def metadata() -> dict[str, Make]:
    """Swollen, looping or nonsensical data beside the pixels; the pixels themselves are fine."""
    jpeg = encoded(RED, "JPEG")
    text = zlib.compress(bytes(50_000_000), 9)
    loop = exif([(0x8769, 4, 1, struct.pack(">I", 8)), (ORIENTATION, 3, 1, b"\0\6\0\0")], next_directory=8)
    deep = b"".join(struct.pack(">HHHII", 1, 0x8769, 4, 1, 8 + 18 * (level + 1)) + bytes(4) for level in range(3000))
    numbers = {
        "0": b"\0\0\0\0",
        "9": b"\0\x09\0\0",
        "65535": b"\xff\xff\0\0",
    }
    rows: dict[str, Make] = {
        f"orientation {name}": lambda value=value: behind_start(  # type: ignore[misc]
            jpeg, jpeg_segment(0xE1, exif([(ORIENTATION, 3, 1, value)]))
        )
        for name, value in numbers.items()
    }
    blocks = {
        "orientation is text": exif([(ORIENTATION, 2, 4, b"abc\0")]),
        "orientation is a fraction": exif([(ORIENTATION, 5, 1, struct.pack(">I", 26))], rest=bytes(8)),
        "four thousand million orientations": exif([(ORIENTATION, 3, 2**32 - 1, b"\0\0\0\x08")]),
        "orientation lies outside": exif([(ORIENTATION, 3, 9, b"\xff\xff\xff\xf0")]),
        "orientation of unknown type": exif([(ORIENTATION, 99, 1, b"\0\6\0\0")]),
        "no orientation at all, count 0": exif([(ORIENTATION, 3, 0, b"\0\0\0\0")]),
        "exif that loops": loop,
        "deep exif": b"Exif\0\0MM\0*\0\0\0\x08" + deep,
        "exif of 5000 tags": exif([(tag, 3, 1, b"\0\1\0\0") for tag in range(5000)]),
        "exif of nothing": b"Exif\0\0",
        "exif of random bytes": b"Exif\0\0" + noise(60, 60).tobytes(),
        "exif cut off": loop[:25],
        "huge exif": b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\xff" * 65_000,
    }
    rows |= {
        name: lambda block=block: behind_start(jpeg, jpeg_segment(0xE1, block))  # type: ignore[misc]
        for name, block in blocks.items()
    }
    return rows | {
        "deep exif in png": lambda: small_png(png_chunk(b"eXIf", b"MM\0*\0\0\0\x08" + deep)),
        "exif of random bytes in png": lambda: small_png(png_chunk(b"eXIf", noise(60, 60).tobytes())),
        "exif of text in png": lambda: small_png(png_chunk(b"tEXt", b"exif\0MM\0*\0\0\0\x08\xff\xff")),
        "exif profile of text in png": lambda: small_png(png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  8\nzz")),
        "exif profile of bytes in png": lambda: small_png(png_chunk(b"tEXt", b"Raw profile type exif\0" + bytes(99))),
        "exif of random bytes in webp": lambda: encoded(RED, "WEBP", exif=b"Exif\0\0" + noise(60, 60).tobytes()),
        "sixteen megabytes of exif": lambda: behind_start(jpeg, jpeg_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 240),
        "sixteen megabytes of icc": lambda: behind_start(
            jpeg,
            *(jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 255]) + bytes(62_000)) for number in range(255)),
        ),
        "icc pieces without numbers": lambda: behind_start(jpeg, jpeg_segment(0xE2, b"ICC_PROFILE\0") * 9),
        "photoshop block that points outside": lambda: behind_start(
            jpeg, jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff\xff\xff\xff\xff")
        ),
        "mpf that points outside": lambda: behind_start(
            jpeg, jpeg_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08" + b"\0\1\xb0\1\0\4\0\0\0\1\xff\xff\xff\xff" + bytes(4))
        ),
        "jfif without a body": lambda: behind_start(jpeg, jpeg_segment(0xE0, b"JFIF\0")),
        "packed icc": lambda: small_png(png_chunk(b"iCCP", b"a\0\0" + text)),
        "icc without an end": lambda: small_png(png_chunk(b"iCCP", b"a\0")),
        "packed text": lambda: small_png(png_chunk(b"zTXt", b"a\0\0" + text)),
        "packed text, many": lambda: small_png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 900),
        "packed international text": lambda: small_png(png_chunk(b"iTXt", b"a\0\1\0\0\0" + text)),
        "text without a body": lambda: small_png(png_chunk(b"tEXt"), png_chunk(b"zTXt"), png_chunk(b"iTXt")),
        "animation of no frames": lambda: small_png(png_chunk(b"acTL", bytes(8))),
        "animation twice": lambda: small_png(png_chunk(b"acTL", b"\0\0\0\1\0\0\0\0") * 2),
    }


def bmp_headers() -> dict[str, Make]:
    """BMP headers that make no sense."""
    pixels = bytes(12 * 9)
    sizes = (0, 1, 4, 12, 16, 41, 124, 65_535, 2**31 - 1, 2**32 - 1)
    rows: dict[str, Make] = {
        f"bmp with a header of {size}": lambda size=size: bmp(3, 9, pixels, header_size=size)  # type: ignore[misc]
        for size in sizes
    }
    rows |= {
        f"bmp of {bits} bits": lambda bits=bits: bmp(3, 9, pixels, bits)  # type: ignore[misc]
        for bits in (0, 2, 3, 7, 64, 65_535)
    }
    rows |= {
        f"bmp of compression {number}": lambda number=number: bmp(3, 9, pixels, 8, number, COLOURS)  # type: ignore[misc]
        for number in (2, 3, 4, 5, 6, 99, 2**32 - 1)
    }
    return rows | {
        "bmp of 2**32 - 1 colours": lambda: bmp(3, 9, pixels, 8, 0, COLOURS, colours=2**32 - 1),
        "bmp of 65536 colours": lambda: bmp(3, 9, pixels, 8, 0, COLOURS, colours=65_536),
        "bmp of one colour": lambda: bmp(4, 9, b"\xff" * 36, 8, 0, COLOURS[:4], colours=1),
        "bmp whose pixels lie outside": lambda: bmp(3, 9, pixels, offset=2**32 - 1),
        "bmp whose pixels are its header": lambda: bmp(3, 3, pixels, offset=0),
    }
