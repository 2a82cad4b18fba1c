"""Image files as people send them: every kind upright and in the right colours, every broken one refused."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from llava_api.errors import BadImage
from llava_api.images.decode import Limits, decode, read_header
from llava_api.images.source import decode_base64, scheme_of, start_of_data

LIMITS = Limits(max_pixels=10**6, max_side=5000, max_aspect_ratio=200)


def file_of(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def colour_at(data: bytes, x: int, y: int) -> np.ndarray:
    image = decode(data, read_header(data, LIMITS).orientation).image
    assert image.mode == "RGB"
    return np.asarray(image)[y, x].astype(int)


def near(colour: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    return bool(np.abs(colour - np.array(wanted)).max() <= 6)


RED = Image.new("RGB", (40, 20), (255, 0, 0))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,{}",
        "data:image/png;charset=utf-8;base64,{}",
        "data:;base64,{}",
        "DATA:image/png;BASE64,{}",
        "DATA:IMAGE/PNG;BASE64,{}",
        "data:base64,{}",
        "data:image/png;base64,data:image/png;base64,{}",
        "data:image/png;base64,b'{}'",
        'data:image/png;base64,b"{}"',
    ],
)
def test_data_urls(url: str) -> None:
    encoded = base64.b64encode(b"some bytes").decode()
    assert decode_base64(url.format(encoded)[start_of_data(url) :]) == b"some bytes"
    assert decode_base64(url.format(encoded[:4] + "\n " + encoded[4:])[start_of_data(url) :]) == b"some bytes"


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:image/png;base64", "data:"])
def test_other_data_urls_are_refused(url: str) -> None:
    with pytest.raises(BadImage, match="base64"):
        start_of_data(url)


@pytest.mark.parametrize("text", ["a*b=", "äöü", "A", "AAAAA"])
def test_damaged_base64_is_refused(text: str) -> None:
    with pytest.raises(BadImage, match="damaged"):
        decode_base64(text)


@pytest.mark.parametrize("text", ["-_8", "-_8=", " +_8=\r\n", "%2B/8%3D", "+\t/8", "+\\n/8=", "b'-/8='"])
def test_base64_as_people_send_it(text: str) -> None:
    assert decode_base64(text) == b"\xfb\xff"


@pytest.mark.parametrize("text", ["{}", "\n {}", "b'{}'"])
def test_base64_without_a_scheme(text: str) -> None:
    data = bytes(range(256)) * 9
    for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes):
        url = text.format(encode(data).decode())
        assert scheme_of(url) == "data"
        assert decode_base64(url[start_of_data(url) :]) == data


def test_what_is_no_base64_is_no_data() -> None:
    for url in (
        "/images/" + "a" * 40,
        "a-folder/" * 5 + "image.png",
        "What is in this image? " * 9,
        "example.com/" * 9,
    ):
        with pytest.raises(BadImage, match="data: URL"):
            scheme_of(url)


@pytest.mark.parametrize("url", ["", "ftp://example.com/a.png", "/etc/passwd", "iVBORw0KGgo=", "blob:1"])
def test_other_sources_are_refused(url: str) -> None:
    with pytest.raises(BadImage, match="data: URL"):
        scheme_of(url)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(image_format: str) -> None:
    assert near(colour_at(file_of(RED, image_format), 5, 5), (254, 0, 0))


def test_first_frame_of_an_animation() -> None:
    blue = Image.new("RGB", (40, 20), (0, 0, 255))
    assert near(colour_at(file_of(RED, "GIF", save_all=True, append_images=[blue]), 5, 5), (255, 0, 0))


def test_palette_grey_and_cmyk() -> None:
    assert near(colour_at(file_of(RED.convert("P"), "PNG"), 5, 5), (255, 0, 0))
    assert near(colour_at(file_of(Image.new("L", (9, 9), 90), "PNG"), 5, 5), (90, 90, 90))
    assert near(colour_at(file_of(RED.convert("CMYK"), "JPEG"), 5, 5), (254, 0, 0))


def test_transparency_is_white() -> None:
    assert near(colour_at(file_of(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG"), 5, 5), (255, 255, 255))
    assert near(colour_at(file_of(Image.new("LA", (9, 9), (0, 128)), "PNG"), 5, 5), (127, 127, 127))
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert near(colour_at(file_of(palette, "PNG", transparency=1), 5, 5), (255, 255, 255))


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = Image.fromarray(np.full((9, 9), 128 * 257, dtype=np.uint16))
    assert near(colour_at(file_of(grey, "PNG"), 5, 5), (128, 128, 128))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """An image stored so that its orientation tag turns it upright: red corner on the upper left."""
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, "PNG", exif=exif)
    header = read_header(data, LIMITS)
    assert header.upright_size() == (60, 40)
    assert header.stored_size == stored.size
    assert decode(data, header.orientation).image.size == (60, 40)
    # Where nobody asks for it, the image stays as it is stored.
    assert decode(data).image.size == stored.size
    assert near(colour_at(data, 5, 5), (255, 0, 0))
    assert near(colour_at(data, 50, 30), (255, 255, 255))


def test_an_odd_exif_tag_does_not_spoil_an_image() -> None:
    """Cameras write such tags: here text in a tag that is a number by rights; the orientation still counts."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "hello"
    whole = file_of(RED, "JPEG", exif=exif)
    description, x_position = b"\x01\x0e\x00\x02", b"\x01\x1e\x00\x02"
    assert whole.count(description) == 1
    data = whole.replace(description, x_position)
    assert decode(data, read_header(data, LIMITS).orientation).size == (20, 40)
    assert near(colour_at(data, 5, 5), (254, 0, 0))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", file_of(RED, "PNG")[:20]],
    ids=["empty", "text", "svg", "pdf", "cut header"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"):
        read_header(data, LIMITS)


def test_a_truncated_file_is_refused() -> None:
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    for image_format in ("PNG", "JPEG"):
        whole = file_of(noise, image_format)
        with pytest.raises(BadImage):
            decode(whole[: len(whole) // 2])


def test_too_many_pixels_are_refused_from_the_header() -> None:
    data = file_of(Image.new("1", (5000, 5000)), "PNG")
    with pytest.raises(BadImage) as refused:
        read_header(data, LIMITS)
    assert refused.value.code == "image_too_large"
