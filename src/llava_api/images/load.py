"""Image parts of a request -> token counts, then pixels.

This takes two steps, so that a request that cannot fit is refused before a pixel is decoded: ``measure`` gets the bytes
and reads headers, ``render`` decodes what is not in the cache.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from blake3 import blake3

from llava_api.concurrency.admission import Admission
from llava_api.concurrency.threads import FairThreads
from llava_api.errors import BadImage, Busy, ErrorCode
from llava_api.images import decode, local_file, source
from llava_api.images.fetch import Fetcher, Resolve
from llava_api.images.mode import Detail, ImageMode
from llava_api.images.pixels import render_pixels
from llava_api.settings import Settings
from llava_api.telemetry.record import current
from llava_api.vision.geometry import Size
from llava_api.vision.normalisation import Pixels

Result = TypeVar("Result")
FindStored = Callable[[str, str], Awaitable[Path | None]]
"""The id of an uploaded file and a caller -> where the file is; None if the caller has no image of that id."""
MEASURING_THREADS = 2
MEASURED_AHEAD = 4
"""A header is read in a fraction of a millisecond."""
MOST_THREADS = 16
"""Unless the settings name a number."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image of a request. ``param`` is its place in the request, for errors."""

    url: str
    param: str
    detail: Detail | None = None


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image whose header has been read and whose pixels have not."""

    data: bytes
    digest: str
    """BLAKE3 of ``data``."""
    param: str
    header: decode.Header
    mode: ImageMode
    """The served model's mode at this image's ``detail``."""
    size: Size
    """(width, height) as the model is shown it."""
    tokens: int
    owner: str = ""
    """The only caller that may get the result from the cache; "" if all may."""

    def cache_key(self) -> str:
        return f"{self.digest}-{self.mode.key()}{self.owner and f'-{self.owner}'}"


@dataclass(frozen=True, slots=True)
class RenderedImage:
    pixels: Pixels
    """(3, S, S) for one tile, (1 + tiles, 3, S, S) for a grid."""
    cache_key: str
    """Made of the file's bytes and how it was rendered. A client cannot choose it."""
    engine_size: Size | None
    """(width, height) that the engine's model is given; see ``ImageMode.engine_size``."""


class ImageCache:
    """Bounded by the bytes of its pixels; the least recently used image goes first. Use it only on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.images: OrderedDict[str, RenderedImage] = OrderedDict()

    def get(self, key: str) -> RenderedImage | None:
        image = self.images.get(key)
        if image is not None:
            self.images.move_to_end(key)
        return image

    def put(self, image: RenderedImage) -> None:
        if image.cache_key in self.images or image.pixels.nbytes > self.max_bytes:
            return
        self.images[image.cache_key] = image
        self.held_bytes += image.pixels.nbytes
        while self.held_bytes > self.max_bytes:
            _, oldest = self.images.popitem(last=False)
            self.held_bytes -= oldest.pixels.nbytes


class ImageLoader:
    """Loads the images of requests for one served model, within the settings' limits.

    ``find_stored``: None if the server stores no files.
    """

    def __init__(
        self,
        mode: ImageMode,
        settings: Settings,
        resolve: Resolve | None = None,
        find_stored: FindStored | None = None,
    ) -> None:
        self.mode = mode
        self.settings = settings
        self.limits = decode.Limits.from_settings(settings)
        self.find_stored = find_stored
        self.fetcher = Fetcher(settings, resolve)
        self.cache = ImageCache(settings.image_cache_bytes)
        threads = settings.image_threads or min(os.cpu_count() or 1, MOST_THREADS)
        most = settings.max_waiting_images
        self.decoding: FairThreads[RenderedImage] = FairThreads(
            threads, "decode", Admission(threads + (threads > 1), most, full=images_busy)
        )
        # Separate threads, so that a refusal, or an image that is in the cache, never waits for others' decoding.
        self.measuring: FairThreads[MeasuredImage] = FairThreads(
            MEASURING_THREADS, "measure", Admission(MEASURING_THREADS + MEASURED_AHEAD, most, full=images_busy)
        )

    async def close(self) -> None:
        self.fetcher.close()
        self.decoding.close()
        self.measuring.close()

    async def measure(
        self, parts: Sequence[ImagePart], caller: str, take: source.Take, queue: str = ""
    ) -> list[MeasuredImage]:
        """Get bytes, headers and token counts.

        ``queue``: whose fetches and turns are counted together; default: the caller's. ``take`` is called for the bytes
        of files that did not come with the request. Raises BadImage with ``param``, and Busy; the work on the other
        parts is then stopped.
        """
        budget = source.ByteBudget(self.settings.max_image_bytes, self.settings.max_request_image_bytes, take)
        return await all_of([self.measure_one(part, caller, queue or caller, budget) for part in parts])

    async def measure_one(self, part: ImagePart, caller: str, queue: str, budget: source.ByteBudget) -> MeasuredImage:
        owner = caller if self.settings.isolate_caches else ""
        try:
            read = await self.reader(part, caller, queue, budget)
            measured = await self.measuring.run(queue, lambda: self.measure_data(read(), part, owner))
            width, height = measured.header.stored_size
            current().note_image(len(measured.data), width * height, measured.tokens)
            return measured
        except BadImage as error:
            raise error.at(part.param) from error

    async def reader(self, part: ImagePart, caller: str, queue: str, budget: source.ByteBudget) -> Callable[[], bytes]:
        """Return a function that gets the bytes of a part's file and may block. Raises BadImage and Busy."""
        scheme = source.scheme_of(part.url)
        if scheme == "web":
            record, started, fetched = current(), perf_counter(), False
            try:
                data = await self.fetcher.fetch(part.url, part.param, queue, budget.left())
                fetched = True
            except BadImage as error:
                if error.code == ErrorCode.IMAGE_TOO_LARGE:
                    # The fetcher was given what is left of the budget, which knows the limit that the error must name.
                    budget.take(budget.left() + 1)
                raise
            finally:
                record.note_step("fetch", started, fetched)
            budget.fetch(len(data))
            return lambda: data
        if scheme == "file":
            folders = self.settings.allowed_media_path
            return lambda: local_file.read_local_file(part.url, folders, budget)
        if scheme == "stored":
            path = await self.stored_path(part.url, caller)
            return lambda: local_file.read_stored(path, budget)
        start = source.start_of_data(part.url)
        budget.take(source.decoded_size(part.url, start))
        # The text without its head is a copy, which is made when its turn has come.
        return lambda: source.decode_base64(part.url[start:])

    async def stored_path(self, file_id: str, caller: str) -> Path:
        """Raises BadImage, without ``param``."""
        if self.find_stored is None:
            raise BadImage(local_file.NONE_STORED, code=ErrorCode.UNSUPPORTED_PARAMETER)
        path = await self.find_stored(file_id, caller)
        if path is None:
            raise local_file.not_stored()
        return path

    def check_stored(self, path: Path, take: source.Take) -> None:
        """Judge a file that is uploaded as an image. Blocks. Raises BadImage, without ``param``, and Busy."""
        budget = source.ByteBudget(self.settings.max_image_bytes, self.settings.max_image_bytes, take)
        decode.read_header(local_file.read_stored(path, budget), self.limits)

    def measure_data(self, data: bytes, part: ImagePart, owner: str) -> MeasuredImage:
        return measured_image(data, part, self.mode, self.limits, owner)

    async def render(self, images: Sequence[MeasuredImage], caller: str) -> list[RenderedImage]:
        """Return the pixels of each image. Callers take turns. Raises BadImage with ``param``, and Busy."""
        return await all_of([self.render_one(image, caller) for image in images])

    async def render_one(self, image: MeasuredImage, caller: str) -> RenderedImage:
        key = image.cache_key()
        known = self.cache.get(key)
        record = current()
        if known is not None:
            record.cache_hits += 1
            return known
        record.cache_misses += 1
        started, decoded = perf_counter(), False
        try:
            rendered = await self.decoding.run(caller, lambda: self.render_data(image), key)
            decoded = True
        except BadImage as error:
            raise error.at(image.param) from error
        finally:
            record.note_step("decode", started, decoded)
        self.cache.put(rendered)
        return rendered

    def render_data(self, image: MeasuredImage) -> RenderedImage:
        return rendered_image(image, self.settings.jpeg_decode == "scaled")


def measured_image(
    data: bytes, part: ImagePart, served: ImageMode, limits: decode.Limits, owner: str = ""
) -> MeasuredImage:
    """Read a file's header. Raises BadImage, without ``param``."""
    header = decode.read_header(data, limits)
    mode = served.at(part.detail)
    size = header.upright_size() if mode.upright else header.stored_size
    return MeasuredImage(data, blake3(data).hexdigest(), part.param, header, mode, size, mode.tokens(size), owner)


def rendered_image(image: MeasuredImage, scaled: bool) -> RenderedImage:
    """Decode a file, at a fraction of its size if ``scaled`` and that suffices. Raises BadImage, without ``param``."""
    mode = image.mode
    orientation = image.header.orientation if mode.upright else 1
    needed = mode.needed(image.size) if scaled else None
    decoded = decode.decode(image.data, orientation, mode.on_white, needed, image.header.stored_size)
    return RenderedImage(render_pixels(decoded, mode), image.cache_key(), mode.engine_size(image.size))


def images_busy() -> Busy:
    return Busy("This server is decoding many images: try again in a few seconds.", code=ErrorCode.IMAGES_BUSY)


async def all_of(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return all results, in order. At the first error the others are cancelled and the error is raised."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
