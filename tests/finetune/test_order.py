"""Which samples a step takes, at which learning rate."""

import math
from itertools import chain

import pytest

from llava_api.finetune.order import Order, is_idle, rounds
from llava_api.finetune.recipe import Recipe, recipe_for
from llava_api.finetune.run import rate_factor

LENGTHS = [30 + index % 7 for index in range(50)] + [-20 - index % 5 for index in range(23)]


@pytest.mark.parametrize("batch", [1, 8, 16, 100])
def test_an_epoch_has_every_sample_once_and_whole_batches(batch: int) -> None:
    order = Order(LENGTHS, batch, epochs=2, seed=1)
    batches = list(order.batches(0))
    assert len(batches) == order.steps == 2 * math.ceil(len(LENGTHS) / batch)
    first, second = batches[: order.steps_per_epoch], batches[order.steps_per_epoch :]
    for epoch in (first, second):
        assert sorted(chain.from_iterable(epoch)) == list(range(len(LENGTHS)))
    assert first != second
    assert all(len(taken) == batch for taken in first[:-1])


def test_batches_have_one_modality_but_for_the_last_ones() -> None:
    kinds = [{LENGTHS[index] > 0 for index in taken} for taken in Order(LENGTHS, 8, 1, seed=1).batches(0)]
    assert [len(kind) for kind in kinds[:-2]] == [1] * 8
    assert kinds[:8].count({True}) == 6


def test_it_goes_on_in_the_middle_of_an_epoch() -> None:
    order = Order(LENGTHS, 8, epochs=3, seed=1)
    assert list(order.batches(17)) == list(order.batches(0))[17:]
    assert list(order.batches(0)) == list(Order(LENGTHS, 8, epochs=3, seed=1).batches(0))
    assert list(order.batches(0)) != list(Order(LENGTHS, 8, epochs=3, seed=2).batches(0))


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("per_device", [1, 3, 16])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_devices_share_a_batch_whatever_their_number(devices: int, per_device: int, size: int) -> None:
    batch = list(range(size))
    shares = [rounds(batch, LENGTHS, per_device, devices, device) for device in range(devices)]
    assert len({len(share) for share in shares}) == 1
    counted = [
        index
        for device, share in enumerate(shares)
        for number, part in enumerate(share)
        for index in part
        if not is_idle(batch, number, per_device, devices, device)
    ]
    assert sorted(counted) == batch
    assert all(1 <= len(part) <= per_device for share in shares for part in share)


def test_a_round_has_samples_of_similar_length() -> None:
    lengths = [5, 90, 7, 80, 6, 85]
    assert rounds([0, 1, 2, 3, 4, 5], lengths, 3, 1, 0) == [[1, 5, 3], [2, 4, 0]]


def test_the_learning_rate_rises_and_falls_as_transformers_cosine_does() -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=100)
    for step in range(100):
        assert rate_factor(step, 100, 0.03) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_defaults_are_llavas_published_settings() -> None:
    """``scripts/v1_5/finetune_lora.sh``, ``finetune.sh`` and ``pretrain.sh`` of LLaVA."""

    def rates(recipe: Recipe) -> tuple[float, float, int]:
        return recipe.learning_rate, recipe.projector_rate, recipe.batch

    lora = recipe_for("lora", {})
    assert (*rates(lora), lora.rank, lora.alpha, lora.dropout) == (2e-4, 2e-5, 128, 128, 256, 0.05)
    assert rates(recipe_for("full", {})) == (2e-5, 2e-5, 128)
    assert rates(recipe_for("projector", {})) == (1e-3, 1e-3, 256)
    assert {recipe_for(mode, {}).warmup for mode in ("lora", "full", "projector")} == {0.03}
    assert rates(recipe_for("projector", {"learning_rate": 2e-3, "batch": 8})) == (2e-3, 2e-3, 8)
