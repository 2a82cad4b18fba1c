"""Files that people send as pictures and that are none of the five kinds taken here: told by name."""

UNTAKEN = (
    (b"%PDF-", "a PDF file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"II*\0", "a TIFF file"),
    (b"MM\0*", "a TIFF file"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"PK\3\4", "a ZIP or Office file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x1aE\xdf\xa3", "a video"),
)
"""(first bytes, what it is); letters are compared in lower case where the entry is in lower case."""
BRANDS = {b"avif": "an AVIF file", b"avis": "an AVIF file", b"heic": "a HEIC file", b"heix": "a HEIC file"}
BRANDS |= {b"mif1": "a HEIC file", b"msf1": "a HEIC file", b"hevc": "a HEIC file"}


def name_of(data: bytes) -> str | None:
    """What a file is that cannot be taken; None where nobody knows."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in UNTAKEN:
        if start.startswith(signature) or start.lower().startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video")
    return None
