"""Every format of a checkpoint loads into the real engine, and answers as transformers and LLaVA's own code compute.

Log-probabilities are compared, not words alone: a wrong weight or a shifted image shows in them long before it
turns a word. All is in float32, where the two differ by some 1e-5.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from llava_api.chat.model import ServedModel, describe_model, open_model, sources_of
from llava_api.checkpoints.cache import ready_checkpoint
from llava_api.engine.base import EngineImage, GenerationRequest
from llava_api.settings import Settings
from llava_api.vision.geometry import tile_grid
from llava_api.vision.normalisation import CLIP
from tests.support.gguf_files import write_pair
from tests.support.small_engine import Answer, SmallEngine, image_request
from tests.support.tiny_checkpoints import (
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    PATCH,
    PINPOINTS,
    TEXT_MODELS,
    TILE,
    VISION_HIDDEN,
    Tiny,
    Weights,
    linear_projector,
    lora_matrices,
    source_model,
    write_hub,
    write_json,
    write_original,
    write_original_lora,
    write_tower,
)
from training.drawings import new_drawing

TOKENS = 16
TOLERANCE = 1e-3
TINYS = [Tiny(text_model, version) for text_model in TEXT_MODELS for version in ("1.5", "1.6")]
TILE_TOKENS = (TILE // PATCH) ** 2
LARGE, WIDE, SMALL = (100, 60), (170, 40), (40, 30)
"""Grids of 2x2, 3x1 and 1x2 tiles. transformers, which reads pinpoints as (height, width), would give SMALL 2x1."""


def name_of(tiny: Tiny) -> str:
    return f"{tiny.text_model}-{tiny.version}"


@cache
def source_of(tiny: Tiny) -> PreTrainedModel:
    return source_model(tiny)


@cache
def drawing(size: tuple[int, int]) -> Image.Image:
    return new_drawing(Random(f"{size}"), size).image


def settings_for(folder: Path, **chosen: Any) -> Settings:
    return Settings(max_model_len=1024, cache_dir=str(folder / "cache"), **chosen)


def served(checkpoint: Path, settings: Settings) -> ServedModel:
    """As ``llava-api serve`` gets a checkpoint ready."""
    found = open_model(str(checkpoint), ("tiny",), settings)
    ready = ready_checkpoint(found.checkpoint, sources_of(settings), settings.cache_dir)
    return describe_model(ready, found.names, settings)


def edit_config(checkpoint: Path, **changes: Any) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", config | changes)
    return checkpoint


# What the answer must be: log-probabilities from transformers' models alone.


def as_transformers_computes(model: PreTrainedModel, request: GenerationRequest, answer: Answer) -> torch.Tensor:
    """Log-probabilities (token, id) where ``answer`` stands, by the whole model as it is."""
    image = request.images[0]
    inputs = {"input_ids": asked_and_answered(request, answer), "pixel_values": values_of(image)[None]}
    if image.size is not None:
        inputs["image_sizes"] = torch.tensor([image.size[::-1]])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return at_the_answer(logits, request)


def values_of(image: EngineImage) -> torch.Tensor:
    """The float32 values of its levels, as transformers' models take them."""
    return torch.from_numpy(CLIP.apply(image.pixels))


def from_features(
    model: PreTrainedModel, features: torch.Tensor, request: GenerationRequest, answer: Answer
) -> torch.Tensor:
    """The same by the text model alone, which is given ``features`` where the image stands."""
    image = request.images[0]
    with torch.no_grad():
        embedded = model.get_input_embeddings()(asked_and_answered(request, answer))
        embedded[0, image.offset : image.offset + image.length] = features
        hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        logits = model.lm_head(hidden)[0]
    return at_the_answer(logits, request)


def asked_and_answered(request: GenerationRequest, answer: Answer) -> torch.Tensor:
    return torch.tensor([request.token_ids + answer.token_ids])


def at_the_answer(logits: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
    """The rows that predict the answer's tokens; the last row predicts what would follow them."""
    return logits[len(request.token_ids) - 1 : -1].log_softmax(-1)


def tile_features(model: PreTrainedModel, request: GenerationRequest) -> torch.Tensor:
    """(tiles, patches, hidden): vision tower and projector, each tile by itself."""
    pixels = values_of(request.images[0])
    tiles = pixels[None] if pixels.ndim == 3 else pixels
    features = []
    with torch.no_grad():
        for tile in tiles:
            seen = model.model.vision_tower(tile[None], output_hidden_states=True).hidden_states[-2][:, 1:]
            features.append(model.model.multi_modal_projector(seen)[0])
    return torch.stack(features)


def row_by_row(tiles: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """Merge type ``spatial``: the base tile, then the tiles put together to one image, read row by row.

    Source: ``prepare_inputs_labels_for_multimodal`` of LLaVA's ``llava_arch.py``.
    """
    side = TILE // PATCH
    rows = [
        tiles[1 + tile_row * across + tile_column, row * side : (row + 1) * side]
        for tile_row in range(down)
        for row in range(side)
        for tile_column in range(across)
    ]
    return torch.cat([tiles[0], *rows])


def largest_difference(answer: Answer, expected: torch.Tensor) -> float:
    return max(
        abs(logprob - float(row[token]))
        for place, row in zip(answer.logprobs, expected, strict=True)
        for token, logprob in place.items()
    )


def check(answer: Answer, expected: torch.Tensor) -> None:
    """The answer is the likeliest one, and as likely as expected; five ids of each token are compared."""
    assert answer.token_ids == expected.argmax(-1).tolist()
    assert min(len(place) for place in answer.logprobs) >= 5
    assert largest_difference(answer, expected) <= TOLERANCE


@pytest.fixture
def start() -> Iterator[Callable[[ServedModel, Settings], SmallEngine]]:
    """Starts an engine that is closed when the test is over, also where it failed."""
    started: list[SmallEngine] = []

    def starter(model: ServedModel, settings: Settings) -> SmallEngine:
        started.append(SmallEngine(model, settings))
        return started[-1]

    yield starter
    for engine in started:
        engine.close()


Start = Callable[[ServedModel, Settings], SmallEngine]


def check_both_images(engine: SmallEngine, model: ServedModel, reference: PreTrainedModel) -> None:
    """An image whose grid transformers' own reading of the pinpoints gives, then one that needs them mirrored."""
    listed = [list(point) for point in PINPOINTS]
    for size, pinpoints in ((LARGE, listed), (SMALL, [point[::-1] for point in listed])):
        request = image_request(model, drawing(size), f"{size}")
        answer = engine.greedy(request, TOKENS)
        if model.checkpoint.vision.tiled:
            reference.model.config.image_grid_pinpoints = pinpoints
        check(answer, as_transformers_computes(reference, request, answer))


# One set of weights in each format.


def original_in_shards(tiny: Tiny, folder: Path) -> Path:
    return write_original(tiny, folder / "made", write_tower(tiny, folder / "tower"))


def original_in_one_file(tiny: Tiny, folder: Path) -> Path:
    return write_original(tiny, folder / "made", write_tower(tiny, folder / "tower"), files="safetensors", shards=1)


def merged_hub(tiny: Tiny, folder: Path) -> Path:
    """One file of weights, beside it the index of shards that were merged into it; no architectures in the config."""
    made = edit_config(write_hub(tiny, folder / "hub", "classic"), architectures=None)
    (file,) = made.glob("*.safetensors")
    file.rename(made / "model.safetensors")
    write_json(made / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    return made


WAYS: dict[str, Callable[[Tiny, Path], Path]] = {
    "hub": lambda tiny, folder: write_hub(tiny, folder / "hub", "classic"),
    "hub-of-new-transformers": lambda tiny, folder: write_hub(tiny, folder / "hub", "transformers"),
    "hub-merged": merged_hub,
    "original-bin-shards": original_in_shards,
    "original-safetensors": original_in_one_file,
}


@pytest.fixture(scope="module")
def hub_prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[Tiny, list[int]]:
    """What each hub checkpoint is asked; the same words make the same tokens in every format."""
    prompts = {}
    for tiny in TINYS:
        folder = tmp_path_factory.mktemp(name_of(tiny))
        model = served(write_hub(tiny, folder / "hub", "classic"), settings_for(folder))
        prompts[tiny] = image_request(model, drawing(LARGE), "prompt").token_ids
    return prompts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tiny", TINYS, ids=name_of)
def test_a_checkpoint_answers_the_same_in_every_format_and_in_transformers(
    tiny: Tiny, way: str, tmp_path: Path, start: Start, hub_prompts: dict[Tiny, list[int]]
) -> None:
    settings = settings_for(tmp_path)
    model = served(WAYS[way](tiny, tmp_path), settings)
    assert image_request(model, drawing(LARGE), "prompt").token_ids == hub_prompts[tiny]
    # Equal to the same reference, the formats are equal to each other.
    check_both_images(start(model, settings), model, source_of(tiny))


@pytest.mark.parametrize("tiny", [Tiny("llama", "1.5"), Tiny("mistral", "1.6")], ids=name_of)
def test_a_lora_in_the_original_format_answers_as_the_model_it_was_made_from(
    tiny: Tiny, tmp_path: Path, start: Start
) -> None:
    lora = write_original_lora(tiny, tmp_path / "lora", tmp_path / "base")
    settings = settings_for(tmp_path, model_base=str(tmp_path / "base"))
    model = served(lora, settings)
    check_both_images(start(model, settings), model, source_of(tiny))


@pytest.mark.parametrize("tiny", [Tiny("llama", "1.5"), Tiny("mistral", "1.6")], ids=name_of)
def test_gguf_files_answer_as_the_model_they_were_made_from(
    tiny: Tiny, tmp_path: Path, start: Start, hub_prompts: dict[Tiny, list[int]]
) -> None:
    settings = settings_for(tmp_path)
    model = served(write_pair(write_hub(tiny, tmp_path / "hub", "classic"), tmp_path / "gguf"), settings)
    assert image_request(model, drawing(LARGE), "prompt").token_ids == hub_prompts[tiny]
    check_both_images(start(model, settings), model, source_of(tiny))


def converted_in_transformers(model: ServedModel) -> PreTrainedModel:
    reference, report = AutoModelForImageTextToText.from_pretrained(model.checkpoint.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return reference.eval()


def vocabulary(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The two weights that have a row for each token."""
    return model.get_input_embeddings().weight, model.lm_head.weight


@pytest.mark.parametrize("tiny", [Tiny("llama", "1.5"), Tiny("qwen2", "1.6")], ids=name_of)
def test_a_projector_of_one_layer_answers_as_transformers_does_with_the_converted_folder(
    tiny: Tiny, tmp_path: Path, start: Start
) -> None:
    original = write_original(tiny, tmp_path / "made", write_tower(tiny, tmp_path / "tower"), projector="linear")
    settings = settings_for(tmp_path)
    model = served(original, settings)
    reference = converted_in_transformers(model)
    layer, seen = linear_projector(), torch.randn(5, VISION_HIDDEN, generator=torch.Generator().manual_seed(0))
    projected = torch.nn.functional.linear(seen, layer["model.mm_projector.weight"], layer["model.mm_projector.bias"])
    torch.testing.assert_close(reference.model.multi_modal_projector(seen), projected)
    check_both_images(start(model, settings), model, reference)


@pytest.mark.parametrize("tiny", [Tiny("llama3", "1.5"), Tiny("mistral", "1.6")], ids=name_of)
def test_an_embedding_without_a_row_for_image_answers_as_transformers_does_with_the_converted_folder(
    tiny: Tiny, tmp_path: Path, start: Start
) -> None:
    original = write_original(tiny, tmp_path / "made", write_tower(tiny, tmp_path / "tower"), embedding="cut")
    rows = json.loads((original / "config.json").read_text())["vocab_size"]
    assert rows <= tiny.image_token_id
    settings = settings_for(tmp_path)
    model = served(original, settings)
    reference = converted_in_transformers(model)
    for made, given in zip(vocabulary(reference), vocabulary(source_of(tiny)), strict=True):
        assert len(made) > rows
        assert torch.equal(made[:rows], given[:rows])
    check_both_images(start(model, settings), model, reference)


# LLaVA's settings for images, most of which transformers' models do not know.


@pytest.mark.parametrize("way", ["hub", "original-bin-shards"])
@pytest.mark.parametrize("merge", ["spatial", "flat"])
def test_tiles_are_merged_as_mm_patch_merge_type_says(merge: str, way: str, tmp_path: Path, start: Start) -> None:
    tiny = Tiny("qwen2", "1.6")
    settings = settings_for(tmp_path)
    model = served(edit_config(WAYS[way](tiny, tmp_path), mm_patch_merge_type=merge), settings)
    engine = start(model, settings)
    for size in (LARGE, WIDE, SMALL):
        request = image_request(model, drawing(size), f"{size}")
        answer = engine.greedy(request, TOKENS)
        tiles = tile_features(source_of(tiny), request)
        grid = tile_grid(size, model.image_mode.pinpoints, TILE, PATCH)
        features = tiles.flatten(0, 1) if merge == "flat" else row_by_row(tiles, grid.across, grid.down)
        assert engine.features[-1] == len(features) == model.image_mode.tokens(size) == request.images[0].length
        check(answer, from_features(source_of(tiny), features, request, answer))


@pytest.mark.parametrize("mode", ["pad", "square"])
def test_a_1_6_checkpoint_shown_one_tile_makes_that_tiles_tokens_and_no_more(
    mode: str, tmp_path: Path, start: Start
) -> None:
    tiny = Tiny("llama", "1.6")
    settings = settings_for(tmp_path, image_mode=mode)
    model = served(write_hub(tiny, tmp_path / "hub", "classic"), settings)
    engine = start(model, settings)
    for size in (LARGE, SMALL):
        request = image_request(model, drawing(size), f"{size}")
        answer = engine.greedy(request, TOKENS)
        features = tile_features(source_of(tiny), request)[0]
        assert engine.features[-1] == len(features) == request.images[0].length == TILE_TOKENS
        check(answer, from_features(source_of(tiny), features, request, answer))


@pytest.mark.parametrize("tiny", [Tiny("llama", "1.5"), Tiny("llama", "1.6")], ids=name_of)
def test_image_mode_hf_answers_as_transformers_does_with_its_own_pixels(
    tiny: Tiny, tmp_path: Path, start: Start
) -> None:
    settings = settings_for(tmp_path, image_mode="hf")
    model = served(write_hub(tiny, tmp_path / "hub", "classic"), settings)
    engine = start(model, settings)
    reference = source_model(tiny)
    for size in (LARGE, SMALL):
        request = image_request(model, drawing(size), f"{size}")
        answer = engine.greedy(request, TOKENS)
        assert engine.features[-1] == request.images[0].length
        check(answer, as_transformers_computes(reference, request, answer))


# A LoRA adapter of PEFT's beside its base model.

SPELLINGS = {"new": "base_model.model.model.language_model.", "old": "base_model.model.language_model.model."}
"""What PEFT writes for a layer of the text model with transformers from 4.52, and before."""


def adapter_matrices(tiny: Tiny) -> Weights:
    """Pairs by their names inside the text model (``layers.0.self_attn.q_proj.lora_A.weight``)."""
    return lora_matrices(dict(source_of(tiny).model.language_model.state_dict()))


def own_projector(tiny: Tiny) -> Weights:
    """A projector that is not the model's, by the names inside it."""
    generator = torch.Generator().manual_seed(7)
    weights = source_of(tiny).model.multi_modal_projector.state_dict()
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}


def write_adapter(tiny: Tiny, folder: Path, prefix: str, *, projector: bool = False) -> Path:
    folder.mkdir()
    pairs = {prefix + name: tensor.contiguous() for name, tensor in adapter_matrices(tiny).items()}
    if projector:
        whole = own_projector(tiny)
        pairs |= {f"base_model.model.model.multi_modal_projector.{name}": tensor for name, tensor in whole.items()}
    save_file(pairs, folder / "adapter_model.safetensors")
    targets = [target.split(".")[1] for target in LORA_TARGETS]
    config = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": targets, "bias": "none"}
    saved = ["multi_modal_projector"] if projector else None
    write_json(folder / "adapter_config.json", {**config, "modules_to_save": saved})
    return folder


def with_adapter_merged(tiny: Tiny, *, projector: bool = False) -> PreTrainedModel:
    model = source_model(tiny)
    pairs = adapter_matrices(tiny)
    weights = dict(model.model.language_model.named_parameters())
    with torch.no_grad():
        for down in (name for name in pairs if name.endswith(".lora_A.weight")):
            module = down.removesuffix(".lora_A.weight")
            weights[f"{module}.weight"] += LORA_ALPHA / LORA_RANK * pairs[f"{module}.lora_B.weight"] @ pairs[down]
    if projector:
        model.model.multi_modal_projector.load_state_dict(own_projector(tiny))
    return model


def of_one_image(request: GenerationRequest) -> GenerationRequest:
    """The request with an image that caches take for the same in all requests."""
    return replace(request, images=tuple(replace(image, cache_key="the same") for image in request.images))


@pytest.mark.parametrize("tiny", [Tiny("llama", "1.5"), Tiny("qwen2", "1.6")], ids=name_of)
def test_an_adapter_beside_the_model_answers_as_its_merged_weights_and_the_model_stays_as_it_was(
    tiny: Tiny, tmp_path: Path, start: Start
) -> None:
    folders = {name: write_adapter(tiny, tmp_path / name, prefix) for name, prefix in SPELLINGS.items()}
    folders["projector"] = write_adapter(tiny, tmp_path / "projector", SPELLINGS["new"], projector=True)
    settings = settings_for(tmp_path, lora=[f"{name}={folder}" for name, folder in folders.items()])
    model = served(write_hub(tiny, tmp_path / "hub", "classic"), settings)
    engine = start(model, settings)
    plain = of_one_image(image_request(model, drawing(LARGE), "before"))
    before = engine.greedy(plain, TOKENS)
    check(before, as_transformers_computes(source_of(tiny), plain, before))
    answers = [before.token_ids]
    for adapter in model.adapters.served.values():
        request = of_one_image(image_request(model, drawing(LARGE), adapter.name, adapter))
        answer = engine.greedy(request, TOKENS)
        merged = with_adapter_merged(tiny, projector=adapter.name == "projector")
        check(answer, as_transformers_computes(merged, request, answer))
        answers.append(answer.token_ids)
    assert answers[0] != answers[1] == answers[2] != answers[3]
    after = engine.greedy(of_one_image(image_request(model, drawing(LARGE), "after")), TOKENS)
    assert after.token_ids == before.token_ids
    check(after, as_transformers_computes(source_of(tiny), plain, after))


def test_the_model_answers_as_alone_while_adapters_answer_in_the_same_batch(tmp_path: Path, start: Start) -> None:
    tiny = Tiny("llama", "1.5")
    birds = write_adapter(tiny, tmp_path / "birds", SPELLINGS["new"])
    fish = write_adapter(tiny, tmp_path / "fish", SPELLINGS["new"], projector=True)
    settings = settings_for(tmp_path, lora=[f"birds={birds}", f"fish={fish}"])
    model = served(write_hub(tiny, tmp_path / "hub", "classic"), settings)
    engine = start(model, settings)
    asked_of = [None, *model.adapters.served.values()]
    asked = [image_request(model, drawing(LARGE), f"alone {adapter}", adapter) for adapter in asked_of]
    alone = [engine.greedy(request, TOKENS).token_ids for request in asked]
    assert alone[0] != alone[1] != alone[2] != alone[0]
    # The caches take the image for the same in all of these, and had none of it before. What keeps the two adapters
    # apart is a slot to spare: see max_loras.
    asked = [
        of_one_image(image_request(model, drawing(LARGE), f"together {number} {adapter}", adapter))
        for number in range(2)
        for adapter in reversed(asked_of)
    ]
    answers = [answer.token_ids for answer in engine.greedy_together(asked, TOKENS)]
    assert answers == 2 * alone[::-1]
