"""The served model: everything that is known about it before the first request."""

import logging
from dataclasses import dataclass, replace
from typing import cast, get_args

from llava_api.chat.adapters import Adapters
from llava_api.checkpoints.inspect import Checkpoint, Sources, inspect_checkpoint
from llava_api.checkpoints.size import PRECISIONS, Precision, stored_precision
from llava_api.engine.base import ModelToLoad
from llava_api.engine.cpu_plan import CpuPlan
from llava_api.errors import StartupError
from llava_api.images.hub_processor import HubProcessor
from llava_api.images.mode import ImageMode
from llava_api.prompts.detect import PromptFormat, detect_family
from llava_api.prompts.family import IMAGE_END, IMAGE_START, PromptFamily
from llava_api.prompts.hub_template import HubTemplate
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.settings import Settings
from llava_api.vision.families import FAMILIES, HF, LAYOUTS, ImageLayout
from llava_api.vision.geometry import PatchMerge
from llava_api.vision.normalisation import CLIP, Normalisation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    names: tuple[str, ...]
    """Names it answers to; the first is used in replies."""
    checkpoint: Checkpoint
    family: PromptFormat
    family_reason: str
    tokenizer: TextTokenizer
    image_mode: ImageMode
    image_mode_reason: str
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: the checkpoint's own and the family's."""
    stop_texts: tuple[str, ...]
    """Texts that end an answer: the family's, and its stop tokens that this tokenizer does not have."""
    adapters: Adapters
    """LoRA adapters served beside it."""

    precision: Precision | None = None
    """What the checkpoint must be quantized to before the engine loads it."""
    quantization: str | None = None
    """vLLM's name of a method to quantize with; None for what the checkpoint says."""
    cpu_plan: CpuPlan | None = None
    """Settings that suit this machine if it has no GPU."""
    parameters: int | None = None
    """Number of its weights, if it is known."""

    def served_names(self) -> tuple[str, ...]:
        """Every name that a request may give: the model's own, then its adapters'."""
        return (*self.names, *self.adapters.served)

    def to_load(self) -> ModelToLoad:
        """What the engine needs to load it. Raises StartupError if vLLM could not."""
        if not self.checkpoint.processor:
            raise StartupError(
                "the checkpoint has no preprocessor_config.json, which vLLM reads while it starts: copy it from the "
                "checkpoint that this one was made from"
            )
        mode = self.image_mode
        family = self.checkpoint.vision
        return ModelToLoad(
            path=self.checkpoint.model,
            family=family,
            stored_dtype=self.checkpoint.stored_dtype,
            normalisation=mode.normalisation,
            pinpoints=mode.engine_pinpoints(),
            merge=mode.engine_merge() if family.tiled else None,
            quantization=self.quantization,
            cpu_plan=self.cpu_plan,
            max_loras=self.adapters.engine_room,
            max_lora_rank=self.adapters.max_rank,
            name=self.names[0],
        )


def sources_of(settings: Settings) -> Sources:
    return Sources(
        settings.revision, settings.download_dir, settings.model_base, settings.vision_tower, settings.mmproj
    )


def layout_of(checkpoint: Checkpoint, override: str | None) -> tuple[ImageLayout, str]:
    """(image layout, the reason in words). Raises StartupError for a layout that does not suit the checkpoint."""
    family = checkpoint.vision
    if override is not None:
        layout = LAYOUTS[override]
        if layout.needs_grid and not family.tiled:
            tiled = " or ".join(str(other) for other in FAMILIES if other.tiled)
            raise StartupError(
                f"--image-mode {override} needs a {tiled} checkpoint; this one is {family.version} and has no grids"
            )
        return layout, "set by --image-mode"
    if checkpoint.aspect_ratio is not None:
        found = LAYOUTS.get(checkpoint.aspect_ratio, HF)
        if found is HF or (found.needs_grid and not family.tiled):
            raise StartupError(
                f"the checkpoint's config.json has image_aspect_ratio {checkpoint.aspect_ratio}, with which it cannot "
                f"be served: choose one of {', '.join(LAYOUTS)} with --image-mode"
            )
        if not checkpoint.says_aspect_ratio:
            return found, f"its config.json has no image_aspect_ratio, and LLaVA's code takes {found.name} then"
        return found, "its config.json says so (image_aspect_ratio)"
    if not checkpoint.own_tower:
        return HF, f"its vision tower is not {family}'s, so its own image processor is used"
    return family.layout, f"{family} was trained this way"


def image_mode_of(checkpoint: Checkpoint, settings: Settings) -> tuple[ImageMode, str]:
    """How images are shown to the checkpoint: by its own settings, else as its family was trained."""
    layout, reason = layout_of(checkpoint, settings.image_mode)
    merge = checkpoint.merge or "spatial_unpad"
    if merge not in get_args(PatchMerge):
        raise StartupError(
            f"the checkpoint's config.json has mm_patch_merge_type {merge}, which llava-api cannot serve"
        )
    side = checkpoint.tile_pixels // checkpoint.patch_pixels
    if checkpoint.pinpoints and checkpoint.tile_tokens != side * side:
        raise StartupError(f"llava-api serves {checkpoint.vision} with vision_feature_select_strategy default only")
    mode = ImageMode(
        name=layout.name,
        tile_pixels=checkpoint.tile_pixels,
        patch_pixels=checkpoint.patch_pixels,
        tile_tokens=checkpoint.tile_tokens,
        normalisation=Normalisation(checkpoint.image_mean or CLIP.mean, checkpoint.image_std or CLIP.std),
        pinpoints=checkpoint.pinpoints,
        merge=cast(PatchMerge, merge) if layout.needs_grid else "spatial_unpad",
        upright=settings.exif_orientation,
        on_white=settings.flatten_transparency,
        hub_processor=HubProcessor(checkpoint.processor) if layout is HF else None,
        grid_tokens=checkpoint.vision.grid_tokens,
    )
    return mode, reason


def hub_template_of(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> HubTemplate | None:
    """The checkpoint's own chat template, if it has one that takes images."""
    if checkpoint.chat_template is None:
        return None
    specials = tuple(tokenizer.special_ids)
    try:
        template = HubTemplate(checkpoint.chat_template, specials, checkpoint.bos_token, checkpoint.eos_token)
    except StartupError as error:
        log.warning("%s; it is ignored", error)
        return None
    return template if template.takes_images() else None


def find_family(checkpoint: Checkpoint, tokenizer: TextTokenizer, override: str | None) -> tuple[PromptFormat, str]:
    """The prompt family and the reason, with markers around images if the checkpoint was trained with them."""
    family, reason = detect_family(
        checkpoint.text_model_type,
        checkpoint.vision,
        tokenizer.knows,
        lambda: hub_template_of(checkpoint, tokenizer),
        override,
    )
    if checkpoint.image_markers and isinstance(family, PromptFamily):
        family = replace(family, image_markers=True)
    return family, reason


def precision_of(checkpoint: Checkpoint, settings: Settings) -> Precision | None:
    """What ``--load-8bit``, ``--load-4bit`` or a GGUF file's own size quantize it to; None for nothing.

    Raises StartupError.
    """
    has = checkpoint.quantization
    is_4bit = stored_precision(checkpoint) == "4bit"
    flag = "--load-8bit" if settings.load_8bit else "--load-4bit" if settings.load_4bit and not is_4bit else None
    if has is not None and flag is not None:
        raise StartupError(f"{flag}: the checkpoint is quantized already ({has}); leave the flag out")
    if settings.load_8bit:
        return "8bit"
    if settings.load_4bit and has is None:
        return "4bit"
    if checkpoint.gguf is None:
        return None
    precision = stored_precision(checkpoint)
    if precision is not None and settings.quantization is not None:
        raise StartupError(
            f"--quantization {settings.quantization}: GGUF files of this size are quantized to "
            f"{PRECISIONS[precision]}; leave the flag out"
        )
    return precision


def describe_model(checkpoint: Checkpoint, names: tuple[str, ...], settings: Settings) -> ServedModel:
    """Choose the prompt format, the image mode and the stops for a checkpoint. Raises StartupError."""
    tokenizer = TextTokenizer(checkpoint.tokenizer_json, checkpoint.bos_token)
    family, family_reason = find_family(checkpoint, tokenizer, settings.prompt_family)
    tokenizer.reserve((*family.specials, *family.stop_tokens, IMAGE_START, IMAGE_END))
    stops = {token: tokenizer.token_id(token) for token in family.stop_tokens}
    own = {*checkpoint.eos_token_ids}
    if checkpoint.eos_token is not None and tokenizer.knows(checkpoint.eos_token):
        own.add(tokenizer.token_id(checkpoint.eos_token) or 0)
    image_mode, mode_reason = image_mode_of(checkpoint, settings)
    return ServedModel(
        names=names,
        checkpoint=checkpoint,
        family=family,
        family_reason=family_reason,
        tokenizer=tokenizer,
        image_mode=image_mode,
        image_mode_reason=mode_reason,
        stop_token_ids=tuple(sorted({*own, *(token for token in stops.values() if token is not None)})),
        stop_texts=(*family.stop_texts, *(text for text, token in stops.items() if token is None)),
        precision=precision_of(checkpoint, settings),
        quantization=settings.quantization,
        adapters=Adapters(settings, names, checkpoint),
    )


def open_model(model: str, names: tuple[str, ...], settings: Settings) -> ServedModel:
    """``describe_model`` of a folder or hub id, of which only small files are read. Raises StartupError."""
    return describe_model(inspect_checkpoint(model, sources_of(settings)), names, settings)
