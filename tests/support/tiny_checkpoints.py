"""Small LLaVA checkpoints with random weights: every text model, in every format a checkpoint is published in.

All formats of one ``Tiny`` hold the same weights, so a test can load each and compare. The original format is the
one of LLaVA's own code (llava/model/builder.py and llava_arch.py of haotian-liu/LLaVA, checkpoints liuhaotian/*);
the hub format is the one of llava-hf/*.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file

from tests.support.tiny_tokenizers import IMAGE_TOKEN, SPECIALS, token_ids, write_json, write_tokenizer

TEXT_MODELS = ("llama", "mistral", "qwen2", "llama3")
Weights = dict[str, torch.Tensor]

TEXT_HIDDEN, HEADS = 128, 4
"""Heads of 32, the smallest that vLLM's CPU attention takes."""
VISION_HIDDEN = 64
TILE, PATCH = 56, 14
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
"""One set, whether read as (width, height) or, as transformers does, (height, width)."""
DEMO = Path(__file__).parents[2] / "src/llava_api/demo"
VISION = {
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
    "projection_dim": VISION_HIDDEN,
}
LORA_RANK, LORA_ALPHA = 4, 8
LORA_TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")


@dataclass(frozen=True)
class Family:
    """How a text model is called in transformers and in LLaVA's code, and the numbers its kin are published with."""

    config: type[transformers.PreTrainedConfig]
    kind: str
    key_value_heads: int
    rope_theta: float
    rms_norm_eps: float


FAMILIES = {
    "llama": Family(transformers.LlamaConfig, "Llama", 4, 10000.0, 1e-5),
    "mistral": Family(transformers.MistralConfig, "Mistral", 2, 1000000.0, 1e-5),
    "qwen2": Family(transformers.Qwen2Config, "Qwen2", 2, 1000000.0, 1e-6),
    "llama3": Family(transformers.LlamaConfig, "Llama", 2, 500000.0, 1e-5),
}


@dataclass(frozen=True)
class Tiny:
    text_model: str
    version: Literal["1.5", "1.6"]

    @property
    def family(self) -> Family:
        return FAMILIES[self.text_model]

    @property
    def image_token_id(self) -> int:
        return token_ids(self.text_model)[IMAGE_TOKEN]

    @property
    def vocab_size(self) -> int:
        """The tokenizer's length with ``<image>``, rounded up to a multiple of 8."""
        return -(-(self.image_token_id + 1) // 8) * 8

    @property
    def end_ids(self) -> dict[str, int]:
        """Qwen2's configs name <|endoftext|> as BOS, though its tokenizer writes none."""
        ids, specials = token_ids(self.text_model), SPECIALS[self.text_model]
        return {"bos_token_id": ids[specials.bos or "<|endoftext|>"], "eos_token_id": ids[specials.eos]}

    @property
    def causal_lm(self) -> str:
        return f"{self.family.kind}ForCausalLM"


def text_fields(tiny: Tiny) -> dict[str, Any]:
    """The text model's settings as a config.json of 2024 spells them (``rope_theta`` by itself)."""
    return {
        "vocab_size": tiny.vocab_size,
        "hidden_size": TEXT_HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": tiny.family.key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": tiny.family.rms_norm_eps,
        "rope_theta": tiny.family.rope_theta,
        "tie_word_embeddings": False,
        **({"sliding_window": None} if tiny.text_model == "mistral" else {}),
        **({"use_sliding_window": False} if tiny.text_model == "qwen2" else {}),
        **tiny.end_ids,
    }


def text_config(tiny: Tiny) -> dict[str, Any]:
    """The config.json of a plain text model, which is also the ``text_config`` of a hub checkpoint."""
    kind = {"architectures": [tiny.causal_lm], "model_type": tiny.family.config.model_type, "torch_dtype": "float32"}
    return {**kind, **text_fields(tiny)}


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Large enough that answers depend on the image and the best token is clearly ahead; see ``source_model``."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.1 * noise
    return 1 + 0.1 * noise if "norm" in name else 0.2 * noise


def source_model(tiny: Tiny) -> transformers.PreTrainedModel:
    """The model all formats are written from: float32, the same weights in every process.

    ``<image>`` and the rows after it are never the best token, so that answers do not depend on having the rows.
    """
    text = tiny.family.config(architectures=[tiny.causal_lm], **text_fields(tiny))
    fields = {
        "text_config": text,
        "vision_config": transformers.CLIPVisionConfig(**VISION),
        "image_token_index": tiny.image_token_id,
        "image_seq_length": (TILE // PATCH) ** 2,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    model: transformers.PreTrainedModel
    if tiny.version == "1.5":
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**fields))
    else:
        config = transformers.LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **fields)
        model = transformers.LlavaNextForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{tiny.text_model} {tiny.version}".encode()))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_weight(name, parameter.shape, generator))
        model.lm_head.weight[tiny.image_token_id :] = 0
    return model.eval()


def renamed(weights: Weights, prefixes: dict[str, str]) -> Weights:
    """Only the weights under the listed prefixes, with the new prefix; safetensors wants them contiguous."""
    return {
        new + name.removeprefix(old): tensor.detach().clone().contiguous()
        for name, tensor in weights.items()
        for old, new in prefixes.items()
        if name.startswith(old)
    }


TEXT = {"model.language_model.": "model.", "lm_head.": "lm_head."}
PROJECTOR = {
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
}
NEWLINE = {"model.image_newline": "model.image_newline"}
TOWER_INSIDE = {"model.vision_tower.": "model.vision_tower.vision_tower.vision_model."}
CLASSIC = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
}
"""llava-hf's names. transformers 5.19 still saves all but the tower's, which lose ``vision_model.``; vLLM 0.32
then refuses them ("no module or parameter named 'vision_tower.embeddings'")."""


def tokenizer_of(tiny: Tiny, folder: Path, *, image_token: bool, slow_only: bool = False) -> int:
    """Write the tokenizer's files; returns the id of ``<image>``, or the tokenizer's length if it has none."""
    return write_tokenizer(tiny.text_model, folder, image_token=image_token, slow_only=slow_only)


def write_processor(tiny: Tiny, folder: Path) -> None:
    """The files of the bundled demo, with our sizes."""
    demo = DEMO / f"llava-tiny-{tiny.version}"
    images = json.loads((demo / "preprocessor_config.json").read_text())
    images |= {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
    if tiny.version == "1.6":
        images["image_grid_pinpoints"] = PINPOINTS
    processor = json.loads((demo / "processor_config.json").read_text())
    write_json(folder / "preprocessor_config.json", images)
    write_json(folder / "processor_config.json", {**processor, "patch_size": PATCH})


def write_hub(tiny: Tiny, folder: Path, names: Literal["classic", "transformers"]) -> Path:
    """llava-hf's format: "classic" as its repositories hold it, "transformers" as the installed release saves."""
    folder.mkdir(parents=True, exist_ok=True)
    model = source_model(tiny)
    if names == "transformers":
        model.save_pretrained(folder)
    else:
        save_file(renamed(model.state_dict(), CLASSIC), folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", classic_config(tiny))
    write_json(folder / "generation_config.json", {**tiny.end_ids, "do_sample": False})
    write_processor(tiny, folder)
    tokenizer_of(tiny, folder, image_token=True)
    return folder


def classic_config(tiny: Tiny) -> dict[str, Any]:
    older = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    newer = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    return {
        **(older if tiny.version == "1.5" else {**newer, "image_grid_pinpoints": PINPOINTS}),
        "image_token_index": tiny.image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": text_config(tiny),
    }


def write_tower(tiny: Tiny, folder: Path) -> Path:
    """openai/clip-vit-large-patch14-336: a whole CLIP, whose text half and position ids are not needed here."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"model_type": "clip_text_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": VISION_HIDDEN,
        "logit_scale_init_value": 2.6592,
        "text_config": {**text, "intermediate_size": 16, "vocab_size": 20},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "torch_dtype": "float32",
    }
    weights = renamed(source_model(tiny).state_dict(), {"model.vision_tower.": "vision_model."})
    weights["vision_model.embeddings.position_ids"] = torch.arange((TILE // PATCH) ** 2 + 1).expand(1, -1).clone()
    weights["text_model.embeddings.position_ids"] = torch.arange(77).expand(1, -1).clone()
    weights["text_model.embeddings.token_embedding.weight"] = torch.ones(20, 16)
    weights["text_model.final_layer_norm.weight"] = torch.ones(16)
    weights["text_projection.weight"] = torch.ones(VISION_HIDDEN, 16)
    weights["visual_projection.weight"] = torch.ones(VISION_HIDDEN, VISION_HIDDEN)
    weights["logit_scale"] = torch.tensor(2.6592)
    torch.save(weights, folder / "pytorch_model.bin")
    write_json(folder / "config.json", config)
    images = json.loads((DEMO / "llava-tiny-1.5/preprocessor_config.json").read_text())
    openai = {"crop_size": TILE, "size": TILE, "feature_extractor_type": "CLIPFeatureExtractor"}
    kept = ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std", "resample")
    write_json(folder / "preprocessor_config.json", {**openai, **{key: images[key] for key in kept}})
    return folder


def original_config(tiny: Tiny, tower: Path, projector: str, vocab_size: int) -> dict[str, Any]:
    """One flat object: the text model's settings with LLaVA's own beside them."""
    kind = tiny.family.kind.removesuffix("2")  # LLaVA's code says LlavaQwen
    newer = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": PINPOINTS}
    return {
        "architectures": [f"Llava{kind}ForCausalLM"],
        "model_type": "llava" if tiny == Tiny("llama", "1.5") else f"llava_{kind.lower()}",
        **text_fields(tiny),
        "vocab_size": vocab_size,
        "mm_vision_tower": str(tower),
        "mm_hidden_size": VISION_HIDDEN,
        "mm_projector_type": projector,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "torch_dtype": "float32",
        "use_cache": True,
        **({"image_aspect_ratio": "pad"} if tiny.version == "1.5" else {**newer, "unfreeze_mm_vision_tower": True}),
    }


def linear_projector() -> Weights:
    """The projector of the first LLaVA: one layer, so none of the source model's weights fit."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.mm_projector.{name}": random_weight(f".{name}", torch.Size(shape), generator)
        for name, shape in (("weight", (TEXT_HIDDEN, VISION_HIDDEN)), ("bias", (TEXT_HIDDEN,)))
    }


def write_original(
    tiny: Tiny,
    folder: Path,
    tower: Path,
    *,
    files: Literal["bin", "safetensors"] = "bin",
    shards: int = 2,
    embedding: Literal["spare", "cut"] = "spare",
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu",
) -> Path:
    """liuhaotian's format. "spare" keeps a row for ``<image>`` after the tokenizer's; "cut" has none, as published."""
    source = source_model(tiny).state_dict()
    parts = [TEXT, *([PROJECTOR] if projector == "mlp2x_gelu" else [])]
    if tiny.version == "1.6":
        parts += [NEWLINE, TOWER_INSIDE]
    weights = {name: tensor for part in parts for name, tensor in renamed(source, part).items()}
    if projector == "linear":
        weights |= linear_projector()
    length = tokenizer_of(tiny, folder, image_token=False, slow_only=True)
    if embedding == "cut":
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:length].clone()
    rows = length if embedding == "cut" else tiny.vocab_size
    write_json(folder / "config.json", original_config(tiny, tower, projector, rows))
    write_json(folder / "generation_config.json", {**tiny.end_ids, "do_sample": False})
    write_shards(weights, folder, files, shards)
    return folder


def write_shards(weights: Weights, folder: Path, files: Literal["bin", "safetensors"], shards: int) -> None:
    stem, ending = ("pytorch_model", "bin") if files == "bin" else ("model", "safetensors")
    names = list(weights)
    weight_map = {}
    for number in range(shards):
        held = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{ending}"
        save({name: weights[name] for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / f"{stem}.{ending}.index.json", index)


def save(weights: Weights, path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(weights, path)
    else:
        save_file(weights, path, metadata={"format": "pt"})


def lora_matrices(weights: Weights, seed: int = 1) -> Weights:
    """peft's pairs for the targeted weights, by the weight's name and ``lora_A`` or ``lora_B``."""
    generator = torch.Generator().manual_seed(seed)
    pairs: Weights = {}
    for name, tensor in sorted(weights.items()):
        module = name.removesuffix(".weight")
        if module.endswith(LORA_TARGETS) and name.endswith(".weight"):
            pairs[f"{module}.lora_A.weight"] = 0.2 * torch.randn(LORA_RANK, tensor.shape[1], generator=generator)
            pairs[f"{module}.lora_B.weight"] = 0.2 * torch.randn(tensor.shape[0], LORA_RANK, generator=generator)
    return pairs


def write_original_lora(tiny: Tiny, folder: Path, base: Path, tower: Path | None = None) -> Path:
    """LLaVA's LoRA format (load_pretrained_model with model_base): ``base`` holds only the text model.

    The base is the source less what the adapter adds, so merging gives the source back to float rounding. The
    tower is a folder beside this one unless given: it is frozen here, and so in none of these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower = tower or write_tower(tiny, folder.with_name(f"{folder.name}-tower"))
    source = source_model(tiny).state_dict()
    text = renamed(source, TEXT)
    pairs = lora_matrices(text)
    for down in (name for name in pairs if name.endswith(".lora_A.weight")):
        module = down.removesuffix(".lora_A.weight")
        text[f"{module}.weight"] -= LORA_ALPHA / LORA_RANK * pairs[f"{module}.lora_B.weight"] @ pairs[down]
    write_text_model(tiny, base, text)

    save({f"base_model.model.{name}": tensor for name, tensor in pairs.items()}, folder / "adapter_model.safetensors")
    trained = renamed(source, {**PROJECTOR, **NEWLINE})
    save({f"base_model.model.{name}": tensor for name, tensor in trained.items()}, folder / "non_lora_trainables.bin")
    config = original_config(tiny, tower, "mlp2x_gelu", tiny.vocab_size)
    write_json(folder / "config.json", {key: config[key] for key in config if key != "unfreeze_mm_vision_tower"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": LORA_RANK,
            "lora_alpha": LORA_ALPHA,
            "lora_dropout": 0.05,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": [target.split(".")[1] for target in LORA_TARGETS],
            "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
            "inference_mode": True,
        },
    )
    return folder


def write_text_model(tiny: Tiny, folder: Path, weights: Weights) -> None:
    """A plain language model of the hub, as Vicuna is."""
    tokenizer_of(tiny, folder, image_token=False, slow_only=True)
    write_json(folder / "config.json", text_config(tiny))
    save(weights, folder / "model.safetensors")
