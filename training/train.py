"""Train one stage of a demo checkpoint: ``python -m training.train llava-tiny-1.5 --folder runs/llava-tiny-1.5``.

The stage ``forms`` starts from the state of the first (``--stage forms --start-from FOLDER/state.pt``). Resumes from
the folder's own ``state.pt``. Losses: cross-entropy on answer tokens, plus an auxiliary one that asks the vision
features which mark covers each patch; without it the same accuracy takes several times as long.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from llava_api.vision.normalisation import CLIP
from training.batches import Batch, TrainingBatches, exam_batch, form_exam_batch
from training.model import KIND_CLASSES, RECIPES, Trainee
from training.tokenizer import build_tokenizer


def normalised(tiles: Tensor) -> Tensor:
    """Levels, uint8 (tiles, 3, S, S), -> float32 of the same shape, as the server's model makes them."""
    return torch.from_numpy(CLIP.apply(tiles.numpy()))


def losses(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(answer loss, auxiliary loss, answer logits, answer labels)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, labels, patches = trainee(batch.ids, batch.labels, normalised(batch.tiles), batch.gather)
    answer = functional.cross_entropy(logits.float(), labels)
    auxiliary = functional.cross_entropy(patches[:, :KIND_CLASSES].float(), batch.kinds)
    auxiliary = auxiliary + functional.cross_entropy(patches[:, KIND_CLASSES:].float(), batch.colours)
    return answer, auxiliary, logits, labels


@torch.no_grad()
def validate(trainee: Trainee, exams: list[Batch]) -> dict[str, float]:
    """Share of answers of which every token is the model's first choice (greedy decoding gives them exactly)."""
    trainee.eval()
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    for exam in exams:
        _, _, logits, labels = losses(trainee, exam)
        wrong_tokens = (logits.argmax(-1) != labels).long()
        wrong = torch.zeros(len(exam.question_kinds), dtype=torch.long).index_add_(0, exam.answers, wrong_tokens)
        for kind, mistakes in zip(exam.question_kinds, wrong.tolist(), strict=True):
            asked[kind] += 1
            right[kind] += mistakes == 0
    trainee.train()
    report = {kind: round(right[kind] / asked[kind], 4) for kind in sorted(asked)}
    report["all"] = round(sum(right.values()) / sum(asked.values()), 4)
    return report


def optimisers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers, AdamW for the rest."""
    matrices, others = [], []
    for name, parameter in trainee.named_parameters():
        inside = parameter.dim() == 2 and "layers" in name
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def rate_at(step: int, steps: int, warm_up: int = 100) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last 45 %."""
    decay_from = int(steps * 0.55)
    if step < warm_up:
        return (step + 1) / warm_up
    if step < decay_from:
        return 1.0
    return max(0.0, (steps - step) / (steps - decay_from))


def train(arguments: argparse.Namespace) -> None:
    recipe = RECIPES[arguments.name]
    stage = recipe.stage(arguments.stage)
    stage = replace(stage, steps=arguments.steps or stage.steps, rate=arguments.rate or stage.rate)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    trainee = Trainee(recipe, tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"))
    if arguments.start_from is not None:
        start = torch.load(arguments.start_from, weights_only=True)["model"]
        own = trainee.state_dict()
        fitting = {name: value for name, value in start.items() if name in own and own[name].shape == value.shape}
        trainee.load_state_dict(fitting, strict=False)
        print(f"started from {len(fitting)} of {len(own)} tensors of {arguments.start_from}", flush=True)
    print(f"{sum(parameter.numel() for parameter in trainee.llava.parameters()):,} parameters", flush=True)
    optimizers = optimisers(trainee, stage.rate)
    step, state_file = 0, folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        trainee.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    batches = TrainingBatches(recipe, stage, tokenizer.to_str(), arguments.seed, arguments.batch_size)
    remaining = Subset(batches, range(step, stage.steps))
    loader = DataLoader(remaining, batch_size=None, num_workers=1, prefetch_factor=8)
    firsts = range(0, arguments.exam, 64)
    exams = [exam_batch(recipe, tokenizer, first, 64) for first in firsts]
    form_exams = [form_exam_batch(recipe, tokenizer, first, 64) for first in firsts] if stage.name == "forms" else []
    started, running = time.monotonic(), [0.0, 0.0]
    for parts in loader:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * rate_at(step, stage.steps)
        tokens = sum(len(part.answers) for part in parts)
        patches = sum(len(part.kinds) for part in parts)
        for part in parts:
            answer, auxiliary, _, _ = losses(trainee, part)
            answer, auxiliary = answer * (len(part.answers) / tokens), auxiliary * (len(part.kinds) / patches)
            (answer + arguments.auxiliary_weight * auxiliary).backward()
            running[0] += answer.item()
            running[1] += auxiliary.item()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if not math.isfinite(running[0]):
            raise RuntimeError("the loss is not finite")
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step} answer {running[0] / 50:.4f} auxiliary {running[1] / 50:.4f} {seconds:.0f} s",
                flush=True,
            )
            running = [0.0, 0.0]
        if step % arguments.save_every == 0 or step == stage.steps:
            report = {"step": step, **validate(trainee, exams)}
            if form_exams:
                report["forms"] = validate(trainee, form_exams)
            print(json.dumps(report), flush=True)
            state = {
                "model": trainee.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
            }
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, required=True, help="where the state is kept")
    parser.add_argument("--stage", choices=("answers", "forms"), default="answers")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, help="highest learning rate; default: the recipe's")
    parser.add_argument("--auxiliary-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exam", type=int, default=256)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--start-from", type=Path, help="a state.pt whose fitting tensors are the starting point")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
