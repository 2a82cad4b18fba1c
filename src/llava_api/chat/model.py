"""The served model: everything that is known about it before the first request."""

from dataclasses import dataclass

from llava_api.checkpoints.inspect import Checkpoint, inspect_checkpoint
from llava_api.errors import StartupError
from llava_api.images.load import ImageMode
from llava_api.images.pixels import CLIP_MEAN, CLIP_STD, Normalisation
from llava_api.prompts.detect import detect_family
from llava_api.prompts.family import PromptFamily
from llava_api.prompts.render import TextTokenizer
from llava_api.settings import Settings


@dataclass(frozen=True, slots=True)
class ServedModel:
    names: tuple[str, ...]
    """Names it answers to; the first stands in replies."""
    checkpoint: Checkpoint
    family: PromptFamily
    family_reason: str
    tokenizer: TextTokenizer
    image_mode: ImageMode
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: the checkpoint's own and the family's."""


def image_mode_of(checkpoint: Checkpoint) -> ImageMode:
    """1.5 was trained on padded squares, 1.6 on any-res tiles (hub copies of the configs do not say so)."""
    return ImageMode(
        name="pad" if checkpoint.version == "1.5" else "anyres",
        tile_pixels=checkpoint.tile_pixels,
        patch_pixels=checkpoint.patch_pixels,
        pinpoints=checkpoint.pinpoints,
        normalisation=Normalisation(checkpoint.image_mean or CLIP_MEAN, checkpoint.image_std or CLIP_STD),
    )


def open_model(model: str, names: tuple[str, ...], settings: Settings) -> ServedModel:
    """Read the checkpoint's small files and decide how to speak to it. Raises StartupError."""
    checkpoint = inspect_checkpoint(model, settings.revision, settings.download_dir)
    if checkpoint.version == "1.6" and not checkpoint.pinpoints:
        raise StartupError("the checkpoint's config.json has no image_grid_pinpoints")
    tokenizer = TextTokenizer(checkpoint.folder / "tokenizer.json", checkpoint.bos_token)
    family, reason = detect_family(checkpoint.text_model_type, tokenizer.knows, settings.prompt_family)
    family_stops = [tokenizer.token_id(token) for token in family.stop_tokens]
    stops = {*checkpoint.eos_token_ids, *(token for token in family_stops if token is not None)}
    return ServedModel(
        names=names,
        checkpoint=checkpoint,
        family=family,
        family_reason=reason,
        tokenizer=tokenizer,
        image_mode=image_mode_of(checkpoint),
        stop_token_ids=tuple(sorted(stops)),
    )
