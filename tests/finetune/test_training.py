"""llava-api finetune trains what its mode says, as LLaVA's scripts do, and goes on after it was killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.checkpoints.claim import claimed
from llava_api.cli.finetune import training
from llava_api.cli.finetune.command import open_input
from llava_api.cli.flags import demo_folder
from llava_api.cli.main import build_parser, main
from llava_api.finetune import snapshots
from llava_api.finetune.dataset import FinetuneDataset, collator
from llava_api.finetune.recipe import recipe_for
from llava_api.finetune.run import Training, with_blank_image
from llava_api.finetune.samples import Samples
from llava_api.finetune.trainee import load_trainee, parameter_groups, trained
from tests.support.drawn_data import write_drawn_data
from tests.support.waiting import wait_until

DEMO = demo_folder() / "llava-tiny-1.5"
SMALL = ("--workers", "0", "--no-gradient-checkpointing")
SMALL_LORA = ("--rank", "4", "--alpha", "8")
PROJECTOR = "multi_modal_projector."
TOWER = "vision_tower."


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_data(tmp_path_factory.mktemp("data"), 24, texts=3)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with a projector that has learned nothing."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    shutil.copytree(DEMO, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        if name.startswith(PROJECTOR):
            tensors[name] = torch.randn_like(tensor) * 0.05
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def command(model: Path | str, data: Path, output: Path, *flags: str) -> list[str]:
    images = data.parent / "images"
    paths = ("--data", str(data), "--image-folder", str(images), "--output", str(output))
    lora = () if "--mode" in flags else SMALL_LORA
    return ["finetune", str(model), *paths, *SMALL, *lora, *flags]


def log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in log(output)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def changed(before: Path, after: Path) -> set[str]:
    """The names of the tensors that differ in any bit."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_both_stages_from_an_untrained_projector(untrained: Path, data: Path, tmp_path: Path) -> None:
    aligned, tuned = tmp_path / "aligned", tmp_path / "tuned"
    captions = write_drawn_data(tmp_path / "captions", 24, captions=True)
    main(command(untrained, captions, aligned, "--mode", "projector", "--batch", "8", "--epochs", "8"))
    assert sum(losses(aligned)[-3:]) < 0.7 * sum(losses(aligned)[:3])
    assert changed(untrained, aligned) == {name for name in weights(aligned) if name.startswith(PROJECTOR)}

    main(command(aligned, data, tuned, "--mode", "full", "--batch", "9", "--epochs", "6", "--learning-rate", "1e-3"))
    assert sum(losses(tuned)[-3:]) < 0.5 * sum(losses(tuned)[:3])
    assert changed(aligned, tuned) == {name for name in weights(tuned) if not name.startswith(TOWER)}


def test_lora_changes_the_text_models_layers_and_the_projector(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "lora"
    main(command("llava-tiny-1.5", data, output, "--batch", "9", "--epochs", "4", "--learning-rate", "5e-3"))
    # The last step of each epoch has the samples without an image, whose answers are new to the model.
    assert losses(output)[-1] < 0.1 * losses(output)[2]
    adapter = weights(output)
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (4, 8, ["multi_modal_projector"])
    layers = [name for name in adapter if ".lora_" in name]
    assert len(layers) == 2 * 7 * 4
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in layers)
    others = {name.removeprefix("base_model.model.model.") for name in adapter.keys() - set(layers)}
    assert others == {name for name in weights(DEMO) if name.startswith(PROJECTOR)}


def test_the_end_says_how_to_serve_what_was_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a lora"
    flags = ("--image-mode", "square", "--no-flatten-transparency", "--batch", "27")
    main(command("llava-tiny-1.5", data, output, *flags))
    use = f"llava-api serve {DEMO} --image-mode=square --no-flatten-transparency --lora 'NAME={output}'"
    assert capsys.readouterr().out.splitlines()[-1] == f"trained: serve it with {use}"
    assert use in (output / "README.md").read_text()


def test_a_killed_training_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ("--batch", "4", "--epochs", "2", "--save-every", "3", "--dropout", "0.2")
    main(command("llava-tiny-1.5", data, whole, *flags))
    program = [sys.executable, "-m", "llava_api", *command("llava-tiny-1.5", data, killed, *flags)]
    with subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: (killed / "checkpoint-6").is_dir() or process.poll() is not None, 120)
        process.send_signal(signal.SIGKILL)
    before = losses(killed)
    assert len(before) < len(losses(whole))
    main(command("llava-tiny-1.5", data, killed, *flags))
    assert losses(killed) == losses(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(killed).items())
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-14"]


def test_the_batch_is_the_same_however_it_is_divided(data: Path, tmp_path: Path) -> None:
    """Two processes, rounds, gradient checkpointing and padding change no loss."""
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    flags = ("--batch", "9", "--dropout", "0", "--learning-rate", "5e-3", "--epochs", "2")
    main(command("llava-tiny-1.6", data, whole, *flags))
    flags = (*flags, "--batch-per-device", "2", "--gradient-checkpointing")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "llava_api", *command("llava-tiny-1.6", data, divided, *flags)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 devices (cpu): 6 steps" in done.stdout
    assert losses(divided) == pytest.approx(losses(whole), rel=1e-4)


def test_the_projector_learns_at_a_rate_of_its_own() -> None:
    recipe = recipe_for("lora", {"rank": 4})
    groups = parameter_groups(load_trainee(DEMO, recipe, torch.float32, {}), recipe)
    assert [(group["lr"], sum(map(torch.numel, group["params"]))) for group in groups] == [
        (2e-4, sum(4 * (128 * 9 + 352 * 3 + 128 * 2) for _ in range(4))),
        (2e-5, 2 * (128 * 128 + 128)),
    ]


@pytest.mark.parametrize("name", ["llava-tiny-1.5", "llava-tiny-1.6"])
def test_a_round_of_text_reaches_the_projector_on_several_devices(name: str, data: Path) -> None:
    model = open_input(build_parser().parse_args(["finetune", name, "--data", str(data)]))
    samples = FinetuneDataset(Samples.read(data, data.parent / "images"), model)
    texts = [index for index, length in enumerate(samples.modality_lengths()) if length < 0]
    part = collator(model)([samples[index] for index in texts])
    recipe = recipe_for("lora", {"rank": 4, "dropout": 0})
    trainee = load_trainee(demo_folder() / name, recipe, torch.float32, model.config_overrides())
    plain, blank = (trainee(**inputs).loss for inputs in (part, with_blank_image(part, model)))
    assert blank.item() == pytest.approx(plain.item(), rel=1e-5)
    blank.backward()
    gradients = [parameter.grad for name, parameter in trained(trainee) if "projector" in name]
    assert len(gradients) == 4
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def refusal(*arguments: str) -> str:
    """The sentence with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return str(caught.value)


def test_a_full_disk_loses_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    flags = ("--batch", "9", "--save-every", "1")

    def full(state: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            snapshots,
            "save_file",
            lambda state, path: (full if "checkpoint-2" in str(path) else save_file)(state, path),
        )
        said = refusal(*command("llava-tiny-1.5", data, output, *flags))
    assert "No space left on device" in said
    assert "the training goes on after step 1" in said
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-1", "log.jsonl", "training.json"]
    other = refusal(*command("llava-tiny-1.5", data, output, *flags, "--seed", "7"))
    assert "was begun with seed 42, not 7" in other
    main(command("llava-tiny-1.5", data, output, *flags, "--batch-per-device", "3"))
    assert [line["step"] for line in log(output)] == [1, 2, 3]
    assert "already has the results of a training" in refusal(*command("llava-tiny-1.5", data, output, *flags))


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    flags = ("--batch", "9", "--save-every", "1")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llava_api.finetune.results.write_results", interrupted)
        refusal(*command("llava-tiny-1.5", data, output, *flags))
    for name in ("trained.safetensors", "optimizer.bin"):
        file = output / "checkpoint-3" / name
        whole = file.read_bytes()
        for rest in (b"", whole[: len(whole) // 2]):
            file.write_bytes(rest)
            said = refusal(*command("llava-tiny-1.5", data, output, *flags))
            assert "checkpoint-3 is damaged: delete it" in said
            assert "goes on after step 2" in said
        file.write_bytes(whole)
    shutil.rmtree(output / "checkpoint-3")
    main(command("llava-tiny-1.5", data, output, *flags))
    assert [line["step"] for line in log(output)] == [1, 2, 3]


def test_two_trainings_do_not_write_into_one_folder(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    output.parent.mkdir()
    with claimed(output, wait=False):
        said = refusal(*command("llava-tiny-1.5", data, output))
    assert f"{output} is being written by another llava-api" in said
    assert not output.exists()


def test_too_little_memory_says_what_to_lower(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(self: Training, part: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "loss", too_much)
    said = refusal(*command("llava-tiny-1.5", data, tmp_path / "output"))
    goes_on, begins = said.split("begin in another --output")
    assert "--batch-per-device (now 16" in goes_on
    assert "leave out --no-gradient-checkpointing" in goes_on
    assert "--load-4bit" in begins


def test_a_process_that_reads_images_and_is_killed_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FinetuneDataset, "__getitem__", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    said = refusal(*command("llava-tiny-1.5", data, tmp_path / "output", "--workers", "1"))
    assert "lower --workers (now 1" in said


def test_a_loss_that_is_no_number_ends_the_training(data: Path, tmp_path: Path) -> None:
    said = refusal(*command("llava-tiny-1.5", data, tmp_path / "o", "--batch", "9", "--learning-rate", "1e30"))
    assert "has the loss nan" in said
    assert "a lower --learning-rate" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch", "0"), "--batch 0: must be 1 or more"),
        (("--mode", "full", "--load-4bit"), "--load-4bit is for --mode lora"),
        (("--load-4bit",), "pip install bitsandbytes"),
        (("--mode", "projector", "--rank", "8"), "--rank is for --mode lora"),
        (("--image-folder", "nowhere"), "--image-folder nowhere is not a folder"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_read(
    data: Path, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    assert said in refusal(*command("llava-tiny-1.5", data, tmp_path / "output", *flags))


def test_without_the_extra_it_says_what_to_install(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NEEDED", ("torch", "no_such_package"))
    said = refusal(*command("llava-tiny-1.5", data, tmp_path / "output"))
    assert said == "llava-api: no_such_package is not installed: pip install 'llava-api[train]'"


def test_a_quantized_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "awq"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert "quantized (awq): train the one that it was made from" in refusal(*command(folder, data, tmp_path / "o"))
