"""Right colours and right way up, in every way in which the five kinds of file can store a pixel."""

import struct

import numpy as np
import pytest
from PIL import Image

from llava_api.errors import BadImage
from llava_api.images.decode import Limits, decode, read_header
from tests.support.image_files import (
    behind_start,
    bmp,
    encoded,
    exif,
    gif,
    gif_frame,
    jpeg_segment,
    noise,
    png_chunk,
    png_of_rows,
)

Colour = tuple[int, int, int]
WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)
LIMITS = Limits(10**6, 5000, 50)
ORIENTATION = 0x0112
TRANSPOSED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image that is stored upright comes out if its tag says otherwise (Pillow's words; EXIF 2.32, 4.6.4)."""


def shown(data: bytes) -> Image.Image:
    """As the server does it: measured, then decoded the right way up."""
    image = decode(data, read_header(data, LIMITS).orientation).image
    assert image.mode == "RGB"
    return image


def colours(data: bytes, *places: tuple[int, int]) -> list[Colour]:
    image = shown(data)
    return [image.getpixel(place) for place in places]  # type: ignore[misc]


def assert_near(found: list[Colour], wanted: list[Colour], tolerance: int = 3) -> None:
    assert np.abs(np.array(found, int) - np.array(wanted, int)).max() <= tolerance, (found, wanted)


def row_of(data: bytes, count: int) -> list[Colour]:
    return colours(data, *((x, 0) for x in range(count)))


# CMYK


INKS = {(255, 0, 0, 0): (0, 255, 255), (0, 255, 255, 0): RED, (0, 0, 0, 255): BLACK, (0, 0, 0, 0): WHITE}
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


def cmyk_jpeg(ink: tuple[int, int, int, int]) -> bytes:
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95, subsampling=0)
    assert data.count(ADOBE) == 1
    return data


@pytest.mark.parametrize("ink", INKS)
def test_cmyk_as_adobe_writes_it(ink: tuple[int, int, int, int]) -> None:
    """Inverted: 255 is no ink."""
    assert_near(colours(cmyk_jpeg(ink), (8, 8)), [INKS[ink]])


@pytest.mark.parametrize("ink", INKS)
def test_cmyk_without_adobes_mark(ink: tuple[int, int, int, int]) -> None:
    """As browsers show it: inverted like Adobe's, since hardly anything else is ever sent."""
    assert_near(colours(cmyk_jpeg(ink).replace(ADOBE, b""), (8, 8)), [INKS[ink]])


def test_ycck() -> None:
    """CMY as luma and chroma of the inks' amounts, K as it is. Red: no cyan, full magenta and yellow, no black."""
    luma, chroma_blue, chroma_red = 179, 171, 1
    stored = Image.new("CMYK", (16, 16), (255 - luma, 255 - chroma_blue, 255 - chroma_red, 0))
    data = encoded(stored, "JPEG", quality=100, subsampling=0).replace(ADOBE, ADOBE[:-1] + b"\2")
    assert_near(colours(data, (8, 8)), [RED], 8)


def test_grey_and_progressive_jpeg() -> None:
    assert_near(colours(encoded(Image.new("L", (16, 16), 90), "JPEG"), (8, 8)), [(90, 90, 90)])
    assert_near(colours(encoded(Image.new("RGB", (16, 16), RED), "JPEG", progressive=True), (8, 8)), [RED])


def test_the_first_image_of_a_camera_file_with_several() -> None:
    """Phones write a preview or a second view behind the image (MPO); it is a JPEG to everybody."""
    first, second = Image.new("RGB", (32, 16), RED), Image.new("RGB", (16, 16), BLUE)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert read_header(data, LIMITS).format == "JPEG"
    assert shown(data).size == (32, 16)
    assert_near(colours(data, (8, 8)), [RED])


# PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits(bits: int) -> None:
    most = 2**bits - 1
    samples = [0, most, most // 2]
    packed = int("".join(f"{sample:0{bits}b}" for sample in samples).ljust(24, "0"), 2).to_bytes(3, "big")
    grey = [round(sample * 255 / most) for sample in samples]
    assert_near(row_of(png_of_rows([packed[: -(-3 * bits // 8)]], 3, bits, 0), 3), [(level,) * 3 for level in grey])


def test_grey_png_of_16_bits() -> None:
    """Scaled, not cut off at 255 or 32767."""
    levels = [0, 255, 256, 257, 4096, 32_767, 32_768, 40_000, 65_280, 65_535]
    found = row_of(png_of_rows([struct.pack(">10H", *levels)], 10, 16, 0), 10)
    assert_near(found, [(level // 257,) * 3 for level in levels], 1)


def test_other_png_of_16_bits() -> None:
    red, half_red = struct.pack(">3H", 65_535, 128, 0), struct.pack(">4H", 65_535, 0, 0, 32_768)
    assert_near(row_of(png_of_rows([red], 1, 16, 2), 1), [RED], 1)
    assert_near(row_of(png_of_rows([half_red], 1, 16, 6), 1), [(255, 127, 127)], 1)
    grey = struct.pack(">6H", 40_000, 65_535, 0, 0, 0, 32_768)
    assert_near(row_of(png_of_rows([grey], 3, 16, 4), 3), [(155, 155, 155), WHITE, (127, 127, 127)], 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png_with_transparency(bits: int) -> None:
    """Colours 0 and 1: red, half transparent, and blue, which has no entry in the table and so is opaque."""
    chunks = [png_chunk(b"PLTE", bytes([*RED, *BLUE])), png_chunk(b"tRNS", b"\x80")]
    packed = {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\0\1"}[bits]
    assert_near(row_of(png_of_rows([packed], 2, bits, 3, chunks), 2), [(255, 127, 127), BLUE], 1)


def test_palette_png_with_one_transparent_colour() -> None:
    chunks = [png_chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE])), png_chunk(b"tRNS", b"\xff\0")]
    assert_near(row_of(png_of_rows([b"\0\1\2"], 3, 8, 3, chunks), 3), [RED, WHITE, BLUE])


def test_one_transparent_colour_without_a_palette() -> None:
    grey = [png_chunk(b"tRNS", struct.pack(">H", 90))]
    assert_near(row_of(png_of_rows([b"\x59\x5a\x5b"], 3, 8, 0, grey), 3), [(89,) * 3, WHITE, (91,) * 3])
    colour = [png_chunk(b"tRNS", struct.pack(">3H", 0, 0, 255))]
    assert_near(row_of(png_of_rows([bytes([*RED, *BLUE])], 2, 8, 2, colour), 2), [RED, WHITE])
    black = [png_chunk(b"tRNS", struct.pack(">H", 0))]
    assert_near(row_of(png_of_rows([b"\x40"], 2, 1, 0, black), 2), [WHITE, WHITE])
    white = [png_chunk(b"tRNS", struct.pack(">H", 1))]
    assert_near(row_of(png_of_rows([b"\x40"], 2, 1, 0, white), 2), [BLACK, WHITE])


@pytest.mark.parametrize(("bits", "row", "level"), [(2, b"\x1b", 1), (4, b"\x01\x20", 1)])
def test_one_transparent_level_of_few_bits(bits: int, row: bytes, level: int) -> None:
    chunks = [png_chunk(b"tRNS", struct.pack(">H", level))]
    shown = row_of(png_of_rows([row], 3, bits, 0, chunks), 3)
    assert_near(shown[:2], [BLACK, WHITE])


def test_one_transparent_colour_of_16_bits() -> None:
    chunks = [png_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0, 0))]
    data = png_of_rows([struct.pack(">6H", 0x1234, 0, 0, 0x8000, 0, 0)], 2, 16, 2, chunks)
    assert_near(row_of(data, 2), [WHITE, (128, 0, 0)])


def test_one_transparent_level_of_16_bit_grey() -> None:
    chunks = [png_chunk(b"tRNS", struct.pack(">H", 0))]
    data = png_of_rows([struct.pack(">3H", 0, 25_700, 65_535)], 3, 16, 0, chunks)
    assert_near(row_of(data, 3), [WHITE, (100, 100, 100), WHITE], 1)


def test_transparency_is_left_alone_where_it_is_switched_off() -> None:
    data = png_of_rows([bytes([*RED, 0, *BLUE, 255])], 2, 8, 6)
    assert decode(data, on_white=False).image.getpixel((0, 0)) == RED
    assert decode(data).image.getpixel((0, 0)) == WHITE


def test_interlaced_and_animated_png() -> None:
    red, blue = Image.new("RGB", (9, 9), RED), Image.new("RGB", (9, 9), BLUE)
    assert_near(colours(encoded(red, "PNG", save_all=True, append_images=[blue]), (4, 4)), [RED])


# GIF, BMP, WebP


def test_gif() -> None:
    see_through = b"!\xf9\4\1\0\0\1\0"
    assert_near(colours(gif(1, 1, gif_frame(1, 1), b";"), (0, 0)), [RED])
    assert_near(colours(gif(1, 1, see_through, gif_frame(1, 1), b";"), (0, 0)), [WHITE])
    # A second frame, and the end that is missing behind it, are not looked at.
    assert_near(colours(gif(1, 1, gif_frame(1, 1), see_through, gif_frame(1, 1, b"\xff")), (0, 0)), [RED])


def test_first_frame_of_other_animations() -> None:
    red, blue = Image.new("RGB", (32, 32), RED), Image.new("RGB", (32, 32), BLUE)
    for image_format in ("GIF", "WEBP", "PNG"):
        data = encoded(red, image_format, save_all=True, append_images=[blue], duration=100)
        assert_near(colours(data, (16, 16)), [RED], 6)


def test_bmp() -> None:
    """Rows from below, in BGR, each filled up to four bytes."""
    palette = bytes([0, 0, 255, 0, 255, 0, 0, 0])
    rows = b"\xff\0\0" + b"\0" + b"\0\0\xff" + b"\0"
    assert_near(colours(bmp(1, 2, rows), (0, 0), (0, 1)), [RED, BLUE])
    assert_near(colours(bmp(1, -2, rows), (0, 0), (0, 1)), [BLUE, RED])
    assert_near(row_of(bmp(2, 1, b"\0\1\0\0", 8, 0, palette, colours=2), 2), [RED, BLUE])
    assert_near(row_of(bmp(2, 1, b"\x40\0\0\0", 1, 0, palette, colours=2), 2), [RED, BLUE])
    assert_near(row_of(bmp(2, 1, b"\x01\0\0\0", 4, 0, palette, colours=2), 2), [RED, BLUE])
    assert_near(row_of(bmp(2, 1, b"\x00\x7c\x1f\x00", 16), 2), [RED, BLUE])
    # The fourth byte is no transparency where the header does not say so.
    assert_near(row_of(bmp(2, 1, b"\0\0\xff\0\xff\0\0\0", 32), 2), [RED, BLUE])


def test_bmp_with_bit_fields() -> None:
    """Compression 3 of the header, and yet not compressed: it says where in 16 or 32 bits each colour is."""
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    assert_near(row_of(bmp(2, 1, b"\x00\xf8\x1f\x00", 16, 3, masks), 2), [RED, BLUE])
    masks = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    assert_near(row_of(bmp(2, 1, b"\0\0\xff\0\xff\0\0\0", 32, 3, masks), 2), [RED, BLUE])


def test_webp_with_transparency() -> None:
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    for lossless in (True, False):
        assert_near(colours(encoded(half, "WEBP", lossless=lossless), (8, 8)), [(255, 127, 127)], 6)


# The right way up


def test_orientations_against_the_image_as_stored() -> None:
    stored = noise(24, 16)
    plain = encoded(stored, "JPEG", quality=95)
    upright = shown(plain)
    for orientation, transpose in TRANSPOSED.items():
        block = exif([(ORIENTATION, 3, 1, struct.pack(">HH", orientation, 0))])
        data = behind_start(plain, jpeg_segment(0xE1, block))
        wanted = upright if transpose is None else upright.transpose(transpose)
        assert read_header(data, LIMITS).upright_size() == wanted.size
        assert shown(data).tobytes() == wanted.tobytes(), orientation


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_where_the_tag_stands(image_format: str, byte_order: str) -> None:
    """In every kind that has one, in both byte orders, behind other tags; decoded at a fraction, too."""
    stored = Image.new("RGB", (64, 32), WHITE)
    stored.paste(RED, (0, 0, 32, 16))
    tags = [
        struct.pack(byte_order + "HHII", 0x0100, 4, 1, 64),
        struct.pack(byte_order + "HHIHH", ORIENTATION, 3, 1, 6, 0),
    ]
    start = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[byte_order]
    block = b"Exif\0\0" + start + struct.pack(byte_order + "H", 2) + b"".join(tags) + bytes(4)
    data = encoded(stored, image_format, exif=block)
    assert shown(data).size == (32, 64)
    # Turned to the right: what was on the upper left is on the upper right.
    assert_near(colours(data, (24, 8), (8, 8), (24, 56)), [RED, WHITE, WHITE], 8)
    small = decode(data, read_header(data, LIMITS).orientation, needed=(8, 16))
    assert small.size == (32, 64)
    assert small.image.size == (32 // small.scale, 64 // small.scale)


@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_orientations_of_images_decoded_at_a_fraction(orientation: int) -> None:
    """Sizes that the fraction does not divide: the same part of the image is shown, whichever way it is stored."""
    upright = noise(97, 61).resize((777, 491), Image.Resampling.BICUBIC)
    back = {6: 8, 8: 6}.get(orientation, orientation)
    turn = TRANSPOSED[back]
    stored = upright if turn is None else upright.transpose(turn)
    block = exif([(ORIENTATION, 3, 1, struct.pack(">HH", orientation, 0))])
    data = behind_start(encoded(stored, "JPEG", quality=98, subsampling=0), jpeg_segment(0xE1, block))
    small = decode(data, read_header(data, Limits(10**6, 5000, 50)).orientation, needed=(97, 61))
    assert small.scale == 4
    assert small.size == (777, 491)
    found = small.image.resize((97, 61), Image.Resampling.BICUBIC, small.box())
    wanted = upright.resize((97, 61), Image.Resampling.BICUBIC)
    # 2.4 where the place is right; 6 to 20 where it is a part of a pixel off.
    assert np.abs(np.asarray(found, int) - np.asarray(wanted, int)).mean() < 4


# Limits


@pytest.mark.parametrize(
    ("size", "words"),
    [((1001, 1000), "pixels"), ((5001, 101), "side"), ((101, 5001), "side"), ((1, 51), "50"), ((51, 1), "50")],
)
def test_sizes_over_a_limit(size: tuple[int, int], words: str) -> None:
    with pytest.raises(BadImage, match=words) as refused:
        LIMITS.check(size)
    assert refused.value.code == "image_too_large"
    with pytest.raises(BadImage):
        read_header(encoded(Image.new("1", size), "PNG"), LIMITS)


@pytest.mark.parametrize("size", [(1000, 1000), (5000, 100), (100, 5000), (1, 50), (50, 1), (1, 1)])
def test_sizes_at_a_limit(size: tuple[int, int]) -> None:
    assert read_header(encoded(Image.new("1", size), "PNG"), LIMITS).stored_size == size


def test_only_the_kinds_that_are_listed() -> None:
    for image_format in ("ICO", "PPM", "TGA", "PCX", "ICNS", "SGI", "EPS", "DDS"):
        try:
            data = encoded(Image.new("RGB", (32, 32), RED), image_format)
        except (OSError, KeyError):
            continue  # This Pillow was built without it.
        with pytest.raises(BadImage, match="JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"):
            read_header(data, LIMITS)
