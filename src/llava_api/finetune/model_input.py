"""What training needs to know of a checkpoint to show it samples as the server shows it requests."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llava_api.checkpoints.inspect import Checkpoint
from llava_api.errors import StartupError
from llava_api.images.decode import Limits
from llava_api.images.mode import ImageMode
from llava_api.prompts.detect import PromptFormat
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.settings import Settings
from llava_api.vision.geometry import Size


@dataclass(frozen=True)
class ModelInput:
    """One checkpoint's prompts, tokens and pixels."""

    checkpoint: Checkpoint
    family: PromptFormat
    tokenizer: TextTokenizer
    mode: ImageMode
    settings: Settings
    plain: bool = False
    """Whether samples have no prompt, only images and a caption: LLaVA's first stage (``--version plain``)."""

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        family: PromptFormat,
        tokenizer: TextTokenizer,
        mode: ImageMode,
        settings: Settings,
        plain: bool = False,
    ) -> "ModelInput":
        """Raises StartupError for a checkpoint that cannot be trained as it is served."""
        if not plain and not family.stop_tokens:
            raise StartupError(
                f"prompt family {family.name} has no token that ends an answer, so none could be learned: name another "
                "with --prompt-family"
            )
        if checkpoint.vision.tiled and (not mode.tiled() or mode.merge != "spatial_unpad"):
            # transformers' model always does both.
            raise StartupError(
                f"{checkpoint.vision} is trained with a grid of tiles and mm_patch_merge_type spatial_unpad only; "
                f"this checkpoint would be shown images as {mode.name}, {mode.merge}"
            )
        return cls(checkpoint, family, tokenizer, mode, settings, plain)

    @cached_property
    def limits(self) -> Limits:
        return Limits.from_settings(self.settings)

    @property
    def max_length(self) -> int:
        """Most tokens of a sample."""
        return self.settings.max_model_len or self.checkpoint.context_length

    def config_overrides(self) -> dict[str, Any]:
        """What transformers' model needs in its config so that it chooses LLaVA's grids.

        It reads pinpoints as (height, width); see "Mirrored pinpoints" in docs/architecture.md.
        """
        pinpoints = self.mode.engine_pinpoints()
        return {"image_grid_pinpoints": [list(pinpoint) for pinpoint in pinpoints]} if pinpoints else {}

    def model_size(self, size: Size) -> Size | None:
        """``image_sizes`` of transformers' model, (height, width), for an image of ``size``; None without grids."""
        engine_size = self.mode.engine_size(size)
        return None if engine_size is None else (engine_size[1], engine_size[0])
