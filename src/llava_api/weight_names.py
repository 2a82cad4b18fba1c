"""Weight names of hub-format checkpoints -> the classic ones, which vLLM reads. Data and one function, no torch."""

CLASSIC = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Names inside transformers 4.52 and later, without the outer ``model`` -> classic."""
TOWER, INNER_TOWER = "vision_tower.", "vision_tower.vision_model."


def classic_name(name: str) -> str:
    """The classic name of a tensor, whichever transformers wrote it.

    ``save_pretrained`` of transformers 5.19 leaves out CLIP's and SigLIP's inner ``vision_model``.
    """
    for prefix, classic in CLASSIC:
        if name.startswith(prefix):
            name = classic + name.removeprefix(prefix)
            break
    if name.startswith(TOWER) and not name.startswith(INNER_TOWER):
        return INNER_TOWER + name.removeprefix(TOWER)
    return name
