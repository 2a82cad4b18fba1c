"""A checkpoint's own image processor, as transformers runs it by default: image mode ``hf``.

For people who need transformers' pixels rather than LLaVA's. The only place in ``images`` that imports
transformers, and only where the mode is asked for.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from llava_api.errors import StartupError
from llava_api.images.pixels import FloatArray


class HubProcessor:
    """``AutoImageProcessor`` of a checkpoint's folder, for one picture at a time."""

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoImageProcessor

            self.processor = AutoImageProcessor.from_pretrained(folder)
        except (ImportError, OSError, ValueError) as error:
            raise StartupError(
                "image mode hf needs transformers and a preprocessor_config.json that it understands: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def pixels(self, image: Image.Image) -> FloatArray:
        """An RGB picture -> float32 (3, S, S), or (1 + tiles, 3, S, S) for an any-res checkpoint."""
        made = self.processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(made, dtype=np.float32)
