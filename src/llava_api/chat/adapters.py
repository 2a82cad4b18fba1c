"""The LoRA adapters that are served beside a model. With ``--lora-dir``, they change while the server runs."""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from llava_api.checkpoints.adapters import check_adapter, locate_adapter
from llava_api.checkpoints.inspect import Checkpoint
from llava_api.checkpoints.size import tensor_shapes
from llava_api.engine.base import Adapter, Engine
from llava_api.engine.vllm_options import rank_for
from llava_api.errors import EngineStopped, ErrorCode, InvalidRequest, NotFound, StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

MORE_ADAPTERS = 4
"""How many ``--lora-dir`` allows besides those of ``--lora``, by default."""
LEAST_RANK = 16
"""Of an engine whose adapters are not known when it starts: vLLM's default."""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


@dataclass(slots=True)
class Use:
    """The answers that an adapter gives at the moment."""

    answers: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there are none."""


class Adapters:
    """Those of ``--lora`` at first. Raises StartupError for one that does not exist or does not fit the model."""

    def __init__(self, settings: Settings, model_names: Sequence[str], checkpoint: Checkpoint) -> None:
        given: dict[str, str] = {}
        for text in settings.lora:
            name, equals, path = text.partition("=")
            if not (equals and name and path):
                raise StartupError(f"--lora {text}: write it as name=folder or name=hub-id")
            if name in model_names or name in given:
                raise StartupError(f"--lora: the name {name} is given twice")
            given[name] = path
        self.model_names = model_names
        self.may_change = settings.adapters_change
        self.hub_cache = settings.download_dir
        self.from_hub = settings.lora_from_hub
        self.folders = [existing_folder(path) for path in settings.lora_dir]
        """Real paths. Adapters may be loaded from them at run time."""
        self.most = settings.max_adapters or len(given) + (MORE_ADAPTERS if self.may_change else 0)
        """Served at the same time."""
        if len(given) > self.most:
            raise StartupError(f"--max-adapters {self.most}: --lora names {len(given)}")
        self.shapes = tensor_shapes(checkpoint) if given or self.may_change else {}
        self.served: dict[str, Adapter] = {}
        for name, path in given.items():
            try:
                folder = locate_adapter(path, settings.download_dir)
                has = check_adapter(folder, self.shapes, settings.max_lora_rank)
            except StartupError as error:
                raise StartupError(f"--lora {name}: {error}") from error
            self.served[name] = Adapter(
                name, str(folder.resolve()), len(self.served) + 1, has.rank, projector=has.projector
            )
        ranks = [adapter.rank for adapter in self.served.values()]
        self.max_rank = settings.max_lora_rank or rank_for(max([*ranks, LEAST_RANK * self.may_change]))
        self.numbers = count(len(ranks) + 1)
        self.engine_names = set(self.served)
        """All that were ever used."""
        self.uses: dict[int, Use] = {}
        """By an adapter's number."""
        self.turn = asyncio.Lock()
        """Adapters are loaded one after the other."""
        self.removals: set[asyncio.Task[None]] = set()
        self.engine_has_started = False

    @property
    def engine_room(self) -> int:
        """How many the engine must hold: one that is replaced may still be answering."""
        return self.most + 1 if self.may_change else len(self.served)

    async def load_into(self, engine: Engine) -> None:
        """Load all that are served into an engine that has just started.

        Raises StartupError. When an engine is started again, an adapter that fails is no longer served instead.
        """
        for adapter in list(self.served.values()):
            if self.served.get(adapter.name) is not adapter:
                # It was unloaded while the others were loaded.
                continue
            try:
                await engine.load_adapter(adapter)
            except StartupError as error:
                if not self.engine_has_started:
                    raise StartupError(f"--lora {adapter.name}: {error}") from error
                log.error("the adapter %s is no longer served: %s", adapter.name, error)
                self.served.pop(adapter.name, None)
            except EngineStopped as error:
                raise StartupError(f"the engine ended while it loaded the adapter {adapter.name}") from error
        self.engine_has_started = True

    @contextmanager
    def using(self, wanted: Adapter | None) -> Iterator[Adapter | None]:
        """The adapter that has the name now, which the engine holds until the end. ``wanted``: the one that had it.

        A request may have waited for its turn while the adapter was replaced. Raises NotFound if it was unloaded.
        """
        adapter = None if wanted is None else self.served.get(wanted.name)
        if adapter is None:
            if wanted is not None:
                raise NotFound(
                    "The adapter of that name was unloaded before this request's turn.",
                    param="model",
                    code=ErrorCode.MODEL_NOT_FOUND,
                )
            yield None
            return
        use = self.uses.setdefault(adapter.number, Use())
        use.answers += 1
        try:
            yield adapter
        finally:
            use.answers -= 1
            if not use.answers:
                del self.uses[adapter.number]
                use.ended.set()

    async def load(self, engine: Engine, name: str, path: str, *, in_place: bool) -> None:
        """Serve an adapter from a folder within ``--lora-dir``. ``in_place``: another of that name may be served.

        Answers that the other has begun it also ends. Must not be cancelled. Raises InvalidRequest, NotFound and
        EngineStopped.
        """
        async with self.turn:
            self.check_name(name, in_place=in_place)
            try:
                folder = await asyncio.to_thread(self.folder_of, path)
                has = await asyncio.to_thread(check_adapter, folder, self.shapes, self.max_rank)
                number, engine_name = next(self.numbers), name
                while engine_name in self.engine_names:
                    number = next(self.numbers)
                    engine_name = f"{name}@{number}"
                adapter = Adapter(name, str(folder), number, has.rank, engine_name, has.projector)
                while len(self.served) + len(self.removals) > self.most:
                    await asyncio.wait(self.removals, return_when=asyncio.FIRST_COMPLETED)
                await engine.load_adapter(adapter)
            except StartupError as error:
                raise InvalidRequest(f"This adapter cannot be served: {error}.", param="lora_path") from error
            self.engine_names.add(engine_name)
            replaced = self.served.get(name)
            self.served[name] = adapter
            if replaced is not None:
                self.remove(engine, replaced)
            log.info("adapter %s %s, from %s", name, "loaded" if replaced is None else "replaced", folder)

    def unload(self, engine: Engine, name: str) -> None:
        """The answers that it has begun it also ends. Raises NotFound."""
        adapter = self.served.pop(name, None)
        if adapter is None:
            raise NotFound(
                "This server has no adapter of that name.", param="lora_name", code=ErrorCode.MODEL_NOT_FOUND
            )
        self.remove(engine, adapter)
        log.info("adapter %s unloaded", name)

    def remove(self, engine: Engine, adapter: Adapter) -> None:
        async def remove_unused() -> None:
            if adapter.number in self.uses:
                await self.uses[adapter.number].ended.wait()
            # An engine that is lost has no adapters to remove.
            with suppress(EngineStopped):
                await engine.remove_adapter(adapter)

        removal = asyncio.create_task(remove_unused())
        self.removals.add(removal)
        removal.add_done_callback(self.removals.discard)

    def check_name(self, name: str, *, in_place: bool) -> None:
        """Raises InvalidRequest."""
        if name in self.model_names:
            raise InvalidRequest("The model itself has this name: choose another.", param="lora_name")
        if name in self.served and not in_place:
            raise InvalidRequest(
                "An adapter of this name is loaded already: load_inplace true replaces it.", param="lora_name"
            )
        if name not in self.served and len(self.served) >= self.most:
            raise InvalidRequest(
                f"This server serves up to {self.most} adapters at the same time (--max-adapters): unload one first.",
                param="lora_name",
            )

    def folder_of(self, path: str) -> Path:
        """The real folder. Blocks, with ``--lora-from-hub`` for as long as a download takes.

        Raises InvalidRequest for one outside ``--lora-dir``, whether it exists or not, and StartupError if the hub does
        not have it.
        """
        of_hub = self.from_hub and HUB_ID.fullmatch(path)
        # ``locate_adapter`` takes folders too, wherever they are.
        if of_hub and not any((start / path).exists() for start in (Path(), *self.folders)):
            return locate_adapter(path, self.hub_cache)
        missing = False
        for allowed in self.folders:
            # Of a path with a zero byte, one that is too long, and a link to itself.
            with suppress(ValueError, OSError, RuntimeError):
                folder = (allowed / path).resolve()
                if not folder.is_relative_to(allowed):
                    continue
                if not folder.is_dir():
                    missing = True
                # A file may be a link, as in a folder that was downloaded from the hub.
                elif all(self.is_within(file.resolve()) for file in folder.iterdir()):
                    return folder
        if missing:
            raise NotFound("There is no such folder within --lora-dir.", param="lora_path")
        raise InvalidRequest(
            "lora_path must be a folder within one of the folders that this server was started with (--lora-dir), and "
            "so must its files be.",
            param="lora_path",
        )

    def is_within(self, path: Path) -> bool:
        return any(path.is_relative_to(allowed) for allowed in self.folders)


def existing_folder(path: str) -> Path:
    """Its real path. Raises StartupError."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise StartupError(f"--lora-dir {path}: there is no such folder")
    return folder
