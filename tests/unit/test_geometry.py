"""Tile grids and token counts against LLaVA's original code, and against the code inside the engine's model."""

from random import Random

import pytest

from llava_api.vision.geometry import Size, merged_tokens, size_for_transformers, tile_grid
from tests.support.golden import cases

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def test_every_golden_grid_and_count() -> None:
    for case in cases("anyres"):
        size = (case["width"], case["height"])
        grid = tile_grid(size, PINPOINTS, 336, 14)
        assert [grid.across, grid.down] == case["grid"], size
        assert merged_tokens(grid, 576, "spatial_unpad") == case["image_tokens"], size


def odd_sizes() -> list[Size]:
    rng = Random("odd sizes")
    odd = [(1, 1), (6000, 200), (200, 6000), (50, 50), (289, 112), (336, 336), (335, 337), (3, 400), (1, 150)]
    return odd + [(rng.randint(1, 1200), rng.randint(1, 1200)) for _ in range(300)]


@pytest.mark.parametrize(
    ("pinpoints", "tile", "patch"),
    [(PINPOINTS, 336, 14), (((112, 224), (224, 112), (224, 224), (336, 112), (112, 336)), 112, 28)],
)
def test_the_engines_model_takes_the_same_grid(pinpoints: tuple[Size, ...], tile: int, patch: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    mirrored = [[height, width] for width, height in pinpoints]
    for size in odd_sizes():
        wanted = tile_grid(size, pinpoints, tile, patch)
        width, height = size_for_transformers(size, pinpoints, tile, patch)
        down, across = get_anyres_image_grid_shape((height, width), mirrored, tile)
        assert (across, down) == (wanted.across, wanted.down), size
        features = torch.zeros(1, down * (tile // patch), across * (tile // patch))
        kept = unpad_image(features, (height, width)).shape
        assert tuple(kept[1:]) == (len(wanted.rows), len(wanted.columns)), size
