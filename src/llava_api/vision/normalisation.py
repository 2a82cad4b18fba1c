"""From levels, 0 to 255, to the values that a vision tower expects.

``engine/vllm_models.py`` looks the values up inside the model; ``explain`` shows them without an engine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Levels = NDArray[np.uint8]
Pixels = FloatArray | Levels
"""Levels, or what transformers' own processor made of an image (image mode ``hf``)."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation that the vision tower expects (RGB, in units of 0..1)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def table(self) -> FloatArray:
        """(3, 256) float32: the normalised value of each level of each channel.

        Bit for bit what transformers' rescale (float64, then float32) and normalise (float32) give.
        """
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean = np.asarray(self.mean, dtype=np.float32)[:, None]
        std = np.asarray(self.std, dtype=np.float32)[:, None]
        return ((scaled[None, :] - mean) / std).astype(np.float32)

    def apply(self, pixels: Pixels) -> FloatArray:
        """Levels (..., 3, S, S) -> float32 of the same shape. float32 is returned as it is."""
        if pixels.dtype == np.float32:
            return pixels.astype(np.float32, copy=False)
        rows = np.arange(3)[:, None, None]
        values: FloatArray = self.table()[rows, pixels.astype(np.uint8, copy=False)]
        return values

    def fill_colour(self) -> tuple[int, int, int]:
        """The mean as bytes, which LLaVA pads with: (122, 116, 104) for CLIP."""
        red, green, blue = (int(channel * 255) for channel in self.mean)
        return red, green, blue


CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""What CLIP's towers expect."""
