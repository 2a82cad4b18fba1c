"""The small files of a hub-format checkpoint, as its config classes and processors in transformers read them."""

from typing import Any

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Config = dict[str, Any]


def hub_config(*, tiled: bool, text: Config, vision: Config, image_token_id: int, pinpoints: list[list[int]]) -> Config:
    """config.json of LlavaForConditionalGeneration, or of LlavaNextForConditionalGeneration where ``tiled``."""
    config: Config = {
        "architectures": ["LlavaNextForConditionalGeneration" if tiled else "LlavaForConditionalGeneration"],
        "model_type": "llava_next" if tiled else "llava",
        "image_token_index": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
    }
    if tiled:
        config["image_grid_pinpoints"] = pinpoints
    else:
        config["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    return config


def clip_processor(tile_pixels: int, patch_pixels: int, pinpoints: list[list[int]]) -> dict[str, Config]:
    """preprocessor_config.json and processor_config.json, as the hub's copies have them."""
    processor_class = "LlavaNextProcessor" if pinpoints else "LlavaProcessor"
    images: Config = {
        "image_processor_type": "LlavaNextImageProcessor" if pinpoints else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": tile_pixels},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": tile_pixels, "width": tile_pixels},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "processor_class": processor_class,
    }
    if pinpoints:
        images |= {"image_grid_pinpoints": pinpoints, "do_pad": True}
    whole = {
        "processor_class": processor_class,
        "image_token": "<image>",
        "patch_size": patch_pixels,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    return {"preprocessor_config.json": images, "processor_config.json": whole}
