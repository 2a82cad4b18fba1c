"""Images as nobody should send them: cut off, swollen, lying about themselves, or something else altogether.

``corpus`` gives them by group. Every one must be answered with a 400 that says what to do, or shown where
``may_be_shown`` says that a decoder may well find an image in it; never a 5xx, and the server goes on.
"""

import gzip
import io
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from tests.support import image_bombs
from tests.support.image_files import (
    PNG_MAGIC,
    RED,
    behind_start,
    box,
    encoded,
    good_files,
    jpeg_segment,
    noise,
    png_chunk,
)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
SCRIPT = b"<script>alert(document.cookie)</script>"


@dataclass(frozen=True, slots=True)
class BadPicture:
    name: str
    make: Callable[[], bytes]
    """Builds the file; some have megabytes, so they are built when they are wanted."""
    may_be_shown: bool = False
    kind: str | None = None
    """What the file is, where its refusal ought to say so."""

    @property
    def data(self) -> bytes:
        return self.make()


def corpus() -> dict[str, list[BadPicture]]:
    """The bad images, by group."""
    made = {
        "too large": image_bombs.too_large(),
        "odd sizes": image_bombs.odd_sizes(),
        "too few rows": image_bombs.too_few_rows(),
        "slow to read": image_bombs.slow_to_read(),
        "metadata": image_bombs.metadata(),
        "bmp headers": image_bombs.bmp_headers(),
    }
    # Where a lenient decoder may find an image. The others have to be refused.
    lenient = {"too few rows", "slow to read", "metadata", "bmp headers"}
    groups = {
        group: [BadPicture(name, make, may_be_shown=group in lenient) for name, make in images.items()]
        for group, images in made.items()
    }
    return groups | {
        "hardly anything": hardly_anything(),
        "truncated": truncated(),
        "flipped": flipped(),
        "random": random_bytes(),
        "other kinds": other_kinds(),
        "polyglots": polyglots(),
    }


def of(name: str, data: bytes, may_be_shown: bool = False, kind: str | None = None) -> BadPicture:
    return BadPicture(name, lambda: data, may_be_shown, kind)


def hardly_anything() -> list[BadPicture]:
    files = good_files()
    rows = {"zero bytes": b"", "one byte": b"\xff", "white space": b" \r\n" * 9, "zeros": bytes(1000)}
    rows |= {f"one byte of {name}": data[:1] for name, data in files.items()}
    rows |= {f"eight bytes of {name}": data[:8] for name, data in files.items()}
    rows |= {
        "png signature": PNG_MAGIC,
        "png of its end alone": PNG_MAGIC + png_chunk(b"IEND"),
        "jpeg of start and end": b"\xff\xd8\xff\xd9",
        "gif without a frame": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b";",
        "webp without a picture": b"RIFF\4\0\0\0WEBP",
        "bmp of two bytes": b"BM",
    }
    return [of(name, data) for name, data in rows.items()]


def truncated() -> list[BadPicture]:
    """Every good file, cut at each sixteenth."""
    return [
        of(f"{name}, {part}/16", data[: len(data) * part // 16])
        for name, data in good_files().items()
        for part in range(1, 16)
    ]


def flipped() -> list[BadPicture]:
    """Every good file with one byte spoilt, in thirty places; half of them among the first bytes."""
    rows = []
    for name, data in good_files().items():
        chance = random.Random(name)
        for number in range(30):
            place = chance.randrange(64 if number % 2 else len(data))
            spoilt = data[:place] + bytes([data[place] ^ chance.randrange(1, 256)]) + data[place + 1 :]
            rows.append(of(f"{name}, byte {place}, {number}", spoilt, may_be_shown=True))
    return rows


def random_bytes() -> list[BadPicture]:
    """Random bytes behind the first bytes of each kind."""
    starts = {
        "jpeg": b"\xff\xd8\xff\xe0",
        "jpeg frame": encoded(RED, "JPEG")[:180],
        "png": PNG_MAGIC,
        "png header": encoded(RED, "PNG")[:33],
        "gif87": b"GIF87a",
        "gif89": b"GIF89a\x09\0\x09\0\0\0\0",
        "webp": b"RIFF\xff\xff\0\0WEBPVP8 ",
        "lossless webp": b"RIFF\xff\xff\0\0WEBPVP8L",
        "extended webp": b"RIFF\xff\xff\0\0WEBPVP8X\x0a\0\0\0",
        "bmp": b"BM",
        "bmp header": b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
        "nothing": b"",
    }
    return [
        of(f"{name}, {seed}", start + random.Random(f"{name} {seed}").randbytes(3000), may_be_shown=name != "nothing")
        for name, start in starts.items()
        for seed in range(5)
    ]


def other_kinds() -> list[BadPicture]:
    """Files of kinds that the server does not take, whose refusal names them, and files that hold no image."""
    ico = struct.pack("<HHHBBBBHHII", 0, 1, 1, 40, 20, 0, 0, 1, 32, len(encoded(RED, "PNG")), 22) + encoded(RED, "PNG")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n%%EndComments\n(x) print\nshowpage\n%%EOF\n"
    rows = {
        "svg": (SVG, "SVG"),
        "svg with a prologue": (b'<?xml version="1.0"?>\n<!-- drawn -->\n' + SVG, "SVG"),
        "svg with a byte order mark": (b"\xef\xbb\xbf" + SVG, "SVG"),
        "svg with entities": (
            b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + SVG,
            "SVG",
        ),
        "packed svg": (gzip.compress(SVG), None),
        "pdf": (b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF", "PDF"),
        "tiff without a page": (b"MM\0*\0\0\0\x08" + bytes(99), None),
        "ico": (ico, "ICO"),
        "heic without an image": (box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(99)), None),
        "avif without an image": (box(b"ftyp", b"avif\0\0\0\0mif1avif") + box(b"meta", bytes(99)), None),
        "psd": (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 20, 40, 8, 3) + bytes(14), "Photoshop"),
        "mp4": (box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41") + box(b"moov", bytes(99)), "video"),
        "jpeg 2000 without an image": (box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 "), None),
        "eps": (eps, "PostScript"),
        "html": (b"<!DOCTYPE html><html><body>Not found</body></html>", "HTML"),
        "json": (b'{"error": "not found"}', None),
        "text": (b"This is not a picture.", None),
        "zip": (zipped(), None),
        "gzip of a png": (gzip.compress(encoded(RED, "PNG")), None),
        "ppm": (encoded(RED, "PPM"), None),
        "tga": (encoded(RED, "TGA"), None),
        "pcx": (encoded(RED, "PCX"), None),
        "base64 twice": (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk", None),
        "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(99), None),
    }
    return [of(name, data, kind=kind) for name, (data, kind) in rows.items()]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.html", SCRIPT)
    return buffer.getvalue()


def polyglots() -> list[BadPicture]:
    """Files that are two things. An image with something behind it is an image; the reverse is not."""
    jpeg, png_file, gif_file = encoded(RED, "JPEG"), encoded(RED, "PNG"), encoded(RED, "GIF")
    pdf = b"%PDF-1.4\n1 0 obj<</Length 999>>stream\n"
    first = {
        "gif and script": gif_file[:-1] + b"!\xfe\x28" + SCRIPT[:40].ljust(40) + b"\0;*/=1;alert(1);",
        "jpeg and zip": jpeg + zipped(),
        "jpeg and php": behind_start(jpeg, jpeg_segment(0xFE, b"<?php system($_GET['c']); ?>")),
        "jpeg and pdf": jpeg + pdf,
        "jpeg twice": jpeg * 2,
        "png and garbage": png_file + noise(50, 50).tobytes(),
        "png and html": png_file[:33] + png_chunk(b"tEXt", b"Comment\0" + SCRIPT) + png_file[33:] + SCRIPT,
        "bmp and script": encoded(RED, "BMP") + SCRIPT,
        "webp and zip": encoded(RED, "WEBP") + zipped(),
    }
    behind = {
        "pdf with a jpeg": (pdf + jpeg + b"\nendstream endobj", "PDF"),
        "html with a png": (b"<html><body>" + SCRIPT + png_file, "HTML"),
        "svg with a png": (SVG[:-6] + png_file + b"</svg>", "SVG"),
        "zip with a png": (zipped() + png_file, None),
        "new line and a png": (b"\n" + png_file, None),
        "mime and a jpeg": (b"Content-Type: image/jpeg\r\n\r\n" + jpeg, None),
        "script called a gif": (b"GIF89a=1;alert(1)//", None),
    }
    return [of(name, data, may_be_shown=True) for name, data in first.items()] + [
        of(name, data, kind=kind) for name, (data, kind) in behind.items()
    ]
