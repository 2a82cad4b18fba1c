"""Weight names of the original format -> the hub's classic ones, which vLLM reads.

Source: ``llava/model`` of the original code, and transformers' conversion script for LLaVA.
"""

import re

from llava_api.errors import StartupError
from llava_api.vision.families import renamed

ORIGINAL_TO_HUB = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
    # Written by a transformers without the inner name.
    ("model.vision_tower.vision_tower.", "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    # A projector of type linear is one layer; see convert.py for the second.
    ("model.mm_projector.weight", "multi_modal_projector.linear_1.weight"),
    ("model.mm_projector.bias", "multi_modal_projector.linear_1.bias"),
    ("model.image_newline", "image_newline"),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)
TOWER_TO_HUB = (
    ("vision_model.", "vision_tower.vision_model."),
    ("embeddings.", "vision_tower.vision_model.embeddings."),
    ("encoder.", "vision_tower.vision_model.encoder."),
    ("pre_layrnorm.", "vision_tower.vision_model.pre_layrnorm."),
    ("post_layernorm.", "vision_tower.vision_model.post_layernorm."),
)
"""Names in a CLIP checkpoint, with or without its text half. All other names belong to the text half."""
BUFFERS = re.compile(r"\.(position_ids|rotary_emb\.inv_freq)$")
"""Tables that every model computes; some checkpoints contain them."""
EMBEDDINGS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def hub_name(original: str) -> str | None:
    """The hub's name; None for a tensor that is not needed. Raises StartupError for an unknown name."""
    if BUFFERS.search(original):
        return None
    found = renamed(original, ORIGINAL_TO_HUB)
    if found is None:
        raise StartupError(f"the checkpoint has a tensor that no LLaVA has: {original}")
    return found


def tower_name(clip: str) -> str | None:
    """The hub's name of a tensor of a CLIP checkpoint; None for its text half."""
    return None if BUFFERS.search(clip) else renamed(clip, TOWER_TO_HUB)
