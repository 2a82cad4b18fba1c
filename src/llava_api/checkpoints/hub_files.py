"""The small files of a hub-format checkpoint, as its config classes and processors in transformers read them."""

from typing import Any

from llava_api.vision.families import VisionFamily
from llava_api.vision.normalisation import CLIP

Config = dict[str, Any]


def hub_config(
    family: VisionFamily, *, text: Config, vision: Config, image_token_id: int, pinpoints: list[list[int]]
) -> Config:
    """config.json of the family's model. ``pinpoints``: for a family with grids."""
    config: Config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "image_token_index": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
    }
    if family.tiled:
        config["image_grid_pinpoints"] = pinpoints
    else:
        config["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    return config


def clip_processor(
    family: VisionFamily, tile_pixels: int, patch_pixels: int, pinpoints: list[list[int]]
) -> dict[str, Config]:
    """preprocessor_config.json and processor_config.json, as the hub's copies have them."""
    images: Config = {
        "image_processor_type": family.image_processor_type,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": tile_pixels},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": tile_pixels, "width": tile_pixels},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP.mean),
        "image_std": list(CLIP.std),
        "processor_class": family.processor_class,
    }
    if family.tiled:
        images |= {"image_grid_pinpoints": pinpoints, "do_pad": True}
    whole = {
        "processor_class": family.processor_class,
        "image_token": "<image>",
        "patch_size": patch_pixels,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    return {"preprocessor_config.json": images, "processor_config.json": whole}
