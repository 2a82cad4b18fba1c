"""A checkpoint in another format, one to quantize, or one with an adapter to merge -> a folder in the hub's format.

The folder is renamed at the end, so it never exists unfinished. Files are memory-mapped; ``.bin`` files run no code.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from llava_api.checkpoints import names, original, tokenizer_files
from llava_api.checkpoints.claim import claimed, made_whole
from llava_api.checkpoints.files import INDEXES, SMALL_FILES, locate, read_json, weight_files
from llava_api.checkpoints.inspect import Checkpoint, Sources, has_tokenizer
from llava_api.checkpoints.lora import Lora
from llava_api.checkpoints.quantize import Quantizer
from llava_api.checkpoints.shards import ShardWriter, write_json
from llava_api.checkpoints.size import PRECISIONS, Precision, count_parameters, tensor_shapes, unquantized_dtype
from llava_api.checkpoints.tensors import Tensors, read_tensors
from llava_api.errors import StartupError
from llava_api.units import readable_size
from llava_api.vision.families import BY_ARCHITECTURE, classic_name

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SECOND_LAYER = "multi_modal_projector.linear_2"
LAST_NORM = "vision_tower.vision_model.post_layernorm"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    checkpoint: Checkpoint,
    sources: Sources,
    target: Path,
    precision: Precision | None = None,
    adapter: Path | None = None,
) -> None:
    """Write ``checkpoint``, quantized if there is a ``precision``, as a hub-format folder ``target``.

    ``adapter``: a folder in PEFT's format, which is merged into it. Raises StartupError, leaving nothing unfinished, if
    a file is missing or damaged, or if ``target`` exists or is being written.
    """
    if checkpoint.format == "hub" and precision is None and adapter is None:
        raise StartupError("this checkpoint is in the hub's format already: it is served as it is")
    if checkpoint.quantization is not None:
        asked = "it is served as it is" if adapter is None else "merge into the checkpoint that it was made from"
        raise StartupError(f"this checkpoint is quantized already ({checkpoint.quantization}): {asked}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with claimed(target, wait=False):
            if target.exists() or target.is_symlink():
                raise StartupError(f"{target} exists already: name a folder that does not")
            write(checkpoint, sources, target, "name another folder", precision, adapter)
    except OSError as error:
        raise cannot_write(target, error, "name another folder") from error


def write(
    checkpoint: Checkpoint,
    sources: Sources,
    target: Path,
    elsewhere: str,
    precision: Precision | None = None,
    adapter: Path | None = None,
) -> None:
    """As ``convert``, for a caller that has claimed ``target``. ``elsewhere``: advice if it cannot be written."""
    needed = 0
    try:
        with made_whole(target) as scratch:
            conversion = Conversion(checkpoint, sources, scratch, precision, adapter)
            needed = conversion.needed_bytes()
            check_space(target, needed, elsewhere)
            conversion.run()
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_write(target, error, elsewhere, needed) from error


def cannot_write(target: Path, error: Exception, elsewhere: str, needed: int = 0) -> StartupError:
    """``needed``: bytes of the source's weights; 0 if they are not known yet."""
    reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix("Error while serializing: ")
    room = f" for {readable_size(needed)} and its vision tower" if needed else ""
    return StartupError(
        f"cannot write the converted checkpoint to {target} ({reason}): see that there is room{room} and that you may "
        f"write there, or {elsewhere}"
    )


class Conversion:
    """One conversion into an empty folder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sources: Sources,
        folder: Path,
        precision: Precision | None = None,
        adapter: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.sources = sources
        self.folder = folder
        self.rows: int = checkpoint.config["text_config"]["vocab_size"]
        self.shapes = tensor_shapes(checkpoint)
        self.quantizer = None if precision is None else Quantizer(precision, self.shapes)
        self.vocabulary = min(checkpoint.image_token_id, self.rows)
        """Rows that the embedding must have before it is padded: one for each token."""
        self.lora = None if adapter is None else Lora(adapter, original=False)
        if checkpoint.gguf is not None:
            self.source = self.base = checkpoint.folder
            self.files = [checkpoint.gguf.text, checkpoint.gguf.vision]
            return
        self.source = locate(checkpoint.model, sources.download_dir, sources.revision, weights=True)
        self.base = self.source
        if checkpoint.format == "original LoRA":
            assert sources.model_base is not None, "inspect_checkpoint asks for it"
            self.lora = Lora(self.source, original=True)
            self.base = locate(sources.model_base, sources.download_dir, weights=True)
            if original.architecture(read_json(self.base, "config.json")) in BY_ARCHITECTURE:
                raise StartupError(
                    "--model-base is a LLaVA in the hub's format: name the text model that the LoRA was trained on, or "
                    "an original-format LLaVA"
                )
        self.files = weight_files(self.base)
        if not self.files:
            raise StartupError(
                f"the checkpoint has no weights: {self.base.name} holds no .safetensors and no .bin file"
            )

    def needed_bytes(self) -> int:
        """Bytes of the new checkpoint, without a vision tower that is fetched from elsewhere."""
        sizes = count_parameters(self.checkpoint).memory_bytes()
        if self.quantizer is not None:
            return sizes[PRECISIONS[self.quantizer.precision]]
        if self.checkpoint.gguf is not None:
            return sizes.get(str(self.checkpoint.stored_dtype), sizes["float16 / bfloat16"])
        return sum(file.stat().st_size for file in self.files)

    def run(self) -> None:
        written = ShardWriter(self.folder)
        found: set[str] = set()
        named = self.checkpoint.gguf or self.checkpoint.model
        if self.lora is not None:
            log.info("merging the LoRA into %s, once ...", self.base)
        elif self.quantizer is None:
            log.info("converting %s from %s format, once ...", named, self.checkpoint.format)
        else:
            log.info("quantizing %s to %s, once ...", named, PRECISIONS[self.quantizer.precision])
        with tqdm(
            total=sum(file.stat().st_size for file in self.files), unit="B", unit_scale=True, disable=None
        ) as bar:
            for file in self.files:
                for name, tensor, size in self.read(file):
                    made = dict(self.renamed(name, tensor))
                    found |= made.keys()
                    written.add(self.final(made))
                    bar.update(size)
            rest = self.rest(found)
            found |= rest.keys()
            written.add(self.final(rest))
        missing = [name for name in self.shapes if name not in found]
        if missing and self.checkpoint.format != "hub":
            raise StartupError(f"the checkpoint is incomplete: it has no {missing[0]} (in the hub's names)")
        written.finish()
        self.write_small_files()
        self.write_manifest(written)

    def read(self, file: Path) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yields each tensor of a source file as (name, values, bytes in the file)."""
        if self.checkpoint.gguf is not None:
            # Imports gguf, which takes a second.
            from llava_api.checkpoints import gguf_tensors

            yield from gguf_tensors.read_tensors(file, self.checkpoint.config, self.dtype())
        else:
            for name, tensor in read_tensors(file).items():
                yield name, tensor, tensor.nbytes

    def dtype(self) -> torch.dtype:
        return DTYPES.get(str(self.checkpoint.stored_dtype), torch.float16)

    def final(self, tensors: Tensors) -> Tensors:
        """``tensors`` in the precision in which they are written."""
        return tensors if self.quantizer is None else self.quantizer.quantized(tensors)

    def renamed(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """A tensor of the source under its hub name, merged and padded; nothing if it is not needed."""
        if self.checkpoint.format == "hub":
            hub = None if names.BUFFERS.search(name) else classic_name(name)
        else:
            hub = name if self.checkpoint.gguf is not None else names.hub_name(name)
        if hub is None or self.is_tied(hub):
            return
        merged = tensor if self.lora is None else self.lora.applied(hub, tensor)
        described = hub in self.shapes or self.checkpoint.format != "hub"
        yield hub, self.fitting(hub, merged) if described else merged

    def is_tied(self, hub: str) -> bool:
        """Whether the hub's format has no such tensor because the embedding is used for it."""
        return hub == "language_model.lm_head.weight" and hub not in self.shapes

    def fitting(self, hub: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as the config describes it. Raises StartupError if it cannot be."""
        if hub not in self.shapes:
            raise StartupError(f"the checkpoint has a tensor that its config.json does not describe: {hub}")
        wanted = self.shapes[hub]
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise StartupError(f"the checkpoint's {hub} holds {tensor.dtype}, not plain floating-point numbers")
        if hub in names.EMBEDDINGS and tensor.ndim == 2 and self.vocabulary <= tensor.shape[0] < wanted[0]:
            tensor = self.padded(tensor)
        if tuple(tensor.shape) != wanted:
            raise StartupError(
                f"the checkpoint's {hub} is {tuple(tensor.shape)} and its config.json describes {wanted}"
            )
        return tensor

    def padded(self, tensor: torch.Tensor) -> torch.Tensor:
        """An embedding with rows for the tokens that the hub's format adds.

        They are the mean of the others, so that the new tokens are as unlikely as an average one. The hub's own script
        draws them around that mean.
        """
        missing = self.rows - tensor.shape[0]
        mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(missing, -1)])

    def rest(self, have: set[str]) -> Tensors:
        """What the weight files do not hold: LoRA's own layers, the vision tower, and additions of the hub's format."""
        made: Tensors = {}
        if self.lora is not None:
            self.lora.check_all_applied()
            for hub, tensor in self.lora.replaced.items():
                if not self.is_tied(hub):
                    made[hub] = self.fitting(hub, tensor)
                elif self.checkpoint.format == "hub":
                    raise StartupError(
                        "the LoRA has an lm_head, and the base model's is its embedding (tie_word_embeddings): merge "
                        "this adapter with peft's merge_and_unload"
                    )
        if self.checkpoint.format == "hub":
            return made
        dtype = self.dtype()
        if self.checkpoint.gguf is not None:
            made |= {name: tensor for name, tensor in self.unused_norm(dtype).items() if name not in have}
        elif not any(name.startswith("vision_tower.") for name in (*have, *made)):
            made |= self.tower()
        hidden = int(self.checkpoint.config["text_config"]["hidden_size"])
        if self.checkpoint.vision.tiled and "image_newline" not in have and "image_newline" not in made:
            # Not trained: merge types flat and spatial have no newline.
            made["image_newline"] = torch.zeros(hidden, dtype=dtype)
        if self.checkpoint.config["projector_hidden_act"] == "linear":
            # One linear layer becomes two, the second of which changes nothing.
            made[f"{SECOND_LAYER}.weight"] = torch.eye(hidden, dtype=dtype)
            made[f"{SECOND_LAYER}.bias"] = torch.zeros(hidden, dtype=dtype)
        return made

    def unused_norm(self, dtype: torch.dtype) -> Tensors:
        """The tower's last norm, which LLaVA does not use: GGUF files leave it out, the hub's format has it."""
        width = self.checkpoint.config["vision_config"]["hidden_size"]
        return {
            f"{LAST_NORM}.weight": torch.ones(width, dtype=dtype),
            f"{LAST_NORM}.bias": torch.zeros(width, dtype=dtype),
        }

    def tower(self) -> Tensors:
        assert self.checkpoint.tower is not None, "every original checkpoint names one"
        made: Tensors = {}
        for file in self.checkpoint.tower.weights(self.sources.download_dir):
            for name, tensor in read_tensors(file).items():
                hub = names.tower_name(name)
                if hub is not None:
                    made[hub] = self.fitting(hub, tensor)
        return made

    def write_small_files(self) -> None:
        """config.json, the tokenizer, and the files of transformers' processors."""
        write_json(self.folder / "config.json", self.config())
        if self.checkpoint.format == "hub":
            for pattern in SMALL_FILES:
                for file in filter(Path.is_file, self.source.glob(pattern)):
                    if file.name not in (*INDEXES, MANIFEST, "config.json"):
                        shutil.copyfile(file, self.folder / file.name)
            return
        if self.checkpoint.gguf is not None:
            for name, content in self.checkpoint.gguf.small_files.items():
                if name != "config.json":
                    write_json(self.folder / name, content)
            return
        tokenizer_folder = self.source if has_tokenizer(self.source) else self.base
        for pattern in tokenizer_files.FILES:
            for file in filter(Path.is_file, tokenizer_folder.glob(pattern)):
                shutil.copyfile(file, self.folder / file.name)
        (self.folder / "tokenizer.json").write_text(self.checkpoint.tokenizer_json, encoding="utf-8")
        settings = tokenizer_files.tokenizer_settings(tokenizer_folder)
        write_json(self.folder / "tokenizer_config.json", self.tokenizer_config(settings, tokenizer_folder))
        generation = read_json(self.source, "generation_config.json")
        if generation:
            write_json(self.folder / "generation_config.json", generation)
        for name, content in original.processor_files(self.checkpoint.config).items():
            write_json(self.folder / name, content)

    def config(self) -> dict[str, Any]:
        """The new config.json."""
        if self.quantizer is None:
            return self.checkpoint.config
        made = {**self.checkpoint.config, "quantization_config": self.quantizer.config()}
        made.pop("dtype", None)
        return made | {"torch_dtype": unquantized_dtype(self.checkpoint.stored_dtype)}

    def tokenizer_config(self, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """tokenizer_config.json with ``<image>``, and with ``legacy`` written out if it was only the default."""
        made = {**settings, "image_token": "<image>"}
        legacy = tokenizer_files.dummy_prefix(settings, not (folder / "tokenizer.json").is_file())
        if legacy is not None:
            made["legacy"] = legacy
        decoder = settings.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            made["added_tokens_decoder"] = {
                **decoder,
                str(self.checkpoint.image_token_id): {"content": "<image>", **flags},
            }
        return made

    def write_manifest(self, written: ShardWriter) -> None:
        """The sources and the size of each file, which a later start checks before it uses the folder."""
        files = {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())}
        manifest = {
            "source": self.checkpoint.model,
            "source_files": {file.name: file.stat().st_size for file in self.files},
            "model_base": self.sources.model_base,
            "vision_tower": self.checkpoint.tower.source if self.checkpoint.tower is not None else None,
            "parameters": written.parameters,
            "files": files,
        }
        write_json(self.folder / MANIFEST, manifest)


def check_space(target: Path, needed: int, elsewhere: str) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed * 1.05:
        raise StartupError(
            f"the converted checkpoint needs {readable_size(needed)} and {target.parent} has {readable_size(free)} "
            f"free: make room, or {elsewhere}"
        )
