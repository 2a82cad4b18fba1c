"""The records of the vision families agree with everything that is looked up by their names."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import llava_api.engine
from llava_api.images.pixels import LEVELS
from llava_api.prompts.families import FAMILIES as PROMPT_FAMILIES
from llava_api.settings import Settings
from llava_api.vision.families import (
    BY_ARCHITECTURE,
    FAMILIES,
    HF,
    LAYOUTS,
    LayoutName,
    VisionFamily,
    family_of_original,
)


def test_names_are_not_given_twice() -> None:
    assert len(BY_ARCHITECTURE) == len(FAMILIES) == len({family.version for family in FAMILIES})
    assert len(FAMILIES) == len({family.engine_architecture for family in FAMILIES})


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_family_has_a_class_a_layout_and_prompts(family: VisionFamily) -> None:
    source = Path(llava_api.engine.__path__[0], "vllm_models.py").read_text()
    classes = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    assert family.engine_class in classes
    assert LAYOUTS[family.layout.name] is family.layout
    assert family.layout.needs_grid is family.tiled
    assert family_of_original(family.layout.name) is family
    assert set(family.prompt_families.values()) <= PROMPT_FAMILIES.keys()
    # vLLM keeps its own models under the hub's names.
    assert family.engine_architecture != family.architecture


def test_every_layout_has_pixels_and_can_be_set() -> None:
    assert LEVELS.keys() == LAYOUTS.keys() - {HF.name}
    assert set(get_args(LayoutName)) == LAYOUTS.keys()
    for name in LAYOUTS:
        assert Settings(image_mode=name).image_mode == name  # type: ignore[arg-type]
