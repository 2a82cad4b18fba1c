"""llava-api finetune takes the steps that transformers' Trainer takes with the same batches."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from llava_api.cli.finetune.command import open_input
from llava_api.cli.flags import demo_folder
from llava_api.cli.main import build_parser
from llava_api.finetune.dataset import FinetuneDataset, collator
from llava_api.finetune.recipe import recipe_for
from llava_api.finetune.run import Training
from llava_api.finetune.samples import Samples
from llava_api.finetune.trainee import TOWER
from tests.support.drawn_data import write_drawn_data

RATE = 1e-3


def test_loss_gradient_and_learning_rate_of_each_step_are_those_of_transformers_trainer(tmp_path: Path) -> None:
    """With gradients accumulated over two rounds, padding, images and text, in full training."""
    name = "llava-tiny-1.6"
    data = write_drawn_data(tmp_path / "data", 8, texts=4)
    model = open_input(build_parser().parse_args(["finetune", name, "--data", str(data)]))
    samples = FinetuneDataset(Samples.read(data, data.parent / "images"), model)
    flags = {"batch": 6, "batch_per_device": 3, "epochs": 4, "learning_rate": RATE, "workers": 0}
    training = Training(demo_folder() / name, samples, recipe_for("full", flags), tmp_path)
    ours = list(training.run())

    parts = [part for batch in training.order.batches(0) for part in training.my_rounds(batch)]

    class Ordered(Trainer):
        def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
            return DataLoader(samples, batch_sampler=parts, collate_fn=collator(model))

    reference = AutoModelForImageTextToText.from_pretrained(demo_folder() / name, dtype=torch.float32)
    for setting, value in model.config_overrides().items():
        setattr(reference.config, setting, value)
    for parameter, weight in reference.named_parameters():
        weight.requires_grad_(TOWER not in parameter)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=len(ours),
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        logging_steps=1,
        weight_decay=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Ordered(model=reference, args=arguments)
    trainer.train()
    theirs = trainer.state.log_history[: len(ours)]
    assert len(ours) == 8
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-4, abs=1e-6)
        assert mine["gradient"] == pytest.approx(float(wanted["grad_norm"]), rel=1e-3, abs=1e-5)
        assert mine["learning_rate"] == pytest.approx(wanted["learning_rate"], abs=1e-12)
