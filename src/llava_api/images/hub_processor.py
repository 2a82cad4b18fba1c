"""A checkpoint's own image processor, as transformers runs it by default: image mode ``hf``.

For people who need transformers' pixels rather than LLaVA's. Transformers is imported only for this mode.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_api.errors import StartupError
from llava_api.vision.normalisation import FloatArray


class HubProcessor:
    """``AutoImageProcessor`` of a checkpoint, for one image at a time.

    ``settings``: the content of its preprocessor_config.json.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        if not settings:
            raise StartupError("image mode hf needs the checkpoint's preprocessor_config.json, which is missing")
        try:
            from transformers import AutoImageProcessor

            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings))
                self.processor = AutoImageProcessor.from_pretrained(folder)
        except ImportError as error:
            raise StartupError("image mode hf needs transformers, which is not installed") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StartupError(
                "image mode hf: transformers does not understand the checkpoint's preprocessor_config.json "
                f"({type(error).__name__})"
            ) from error

    def pixels(self, image: Image.Image) -> FloatArray:
        """An RGB image -> float32 (3, S, S), or (1 + tiles, 3, S, S) for a family with grids."""
        made = self.processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(made, dtype=np.float32)
