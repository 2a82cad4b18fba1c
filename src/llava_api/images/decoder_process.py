"""Decodes one file in a process of its own, which ``isolated`` starts: a script that imports nothing of the package.

Arguments: Pillow's name of the format, the most pixels to decode (0: the header only), bytes of memory, seconds of CPU
time. Standard input: the file. Standard output: a line of width and height of the upright image; then, if pixels are
wanted, a line of width, height and Pillow's mode, and the pixels.
"""

import io
import resource
import sys


def main() -> None:
    name, pixels, memory, seconds = sys.argv[1], *map(int, sys.argv[2:])
    from PIL import AvifImagePlugin, Image, ImageOps

    if name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # The server's limits replace it.
    Image.MAX_IMAGE_PIXELS = None
    data = sys.stdin.buffer.read()
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    image: Image.Image = Image.open(io.BytesIO(data), formats=[name])
    # Pillow turns TIFF and HEIF files upright itself, and their sizes are those of the upright image from the start.
    sideways = name == "AVIF" and image.getexif().get(0x0112) in (5, 6, 7, 8)
    print(*(image.size[::-1] if sideways else image.size), flush=True)
    if not pixels:
        return
    if image.width * image.height > pixels:
        sys.exit("another size than before")
    image.load()
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    if name == "AVIF":
        image = ImageOps.exif_transpose(image)
    print(*image.size, image.mode, flush=True)
    sys.stdout.buffer.write(image.tobytes())
    sys.stdout.flush()


main()
