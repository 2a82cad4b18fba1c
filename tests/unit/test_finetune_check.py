"""What ``llava-api finetune --check-only`` finds in training data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_api.cli.main import main
from llava_api.errors import StartupError
from llava_api.finetune.check import check
from llava_api.finetune.image_files import image_size, read_image, render_image
from llava_api.finetune.samples import BadSample, Samples
from llava_api.vision.geometry import Size
from tests.support.bad_images import corpus
from tests.support.finetune import model_input, samples_of, served, turns

GOOD = turns("<image>\nWhat is it?", "A lamp.")
MISSING = "has an image that cannot be read: {folder}/none.png (No such file or directory)"
ONCE_EACH = ": write it once for each image, in the questions"
UNREADABLE = (
    "has a bad image, {folder}/%s: The image cannot be read, or a part of it is missing: send a JPEG, PNG, WebP, GIF, "
    "BMP, AVIF or TIFF file, whole."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for name in ("good.jpg", "good.png", "good.webp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    return tmp_path


def faults_of(folder: Path, *items: Any, plain: bool = False, **settings: Any) -> list[str]:
    report = check(samples_of(folder, *items), model_input(served("llava-tiny-1.5", folder), plain, **settings))
    assert len(report.good) == len(items) - len({fault.index for fault in report.faults})
    return [str(fault) for fault in report.faults]


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        ({"image": "none.png", "conversations": GOOD}, MISSING),
        ({"image": "cut-good.jpg", "conversations": GOOD}, UNREADABLE % "cut-good.jpg"),
        ({"image": "cut-good.png", "conversations": GOOD}, UNREADABLE % "cut-good.png"),
        ({"image": "cut-good.webp", "conversations": GOOD}, UNREADABLE % "cut-good.webp"),
        ({"image": ".", "conversations": GOOD}, "has an image that is not a regular file: {folder}"),
        ({"image": "/dev/zero", "conversations": GOOD}, "has an image that is not a regular file: /dev/zero"),
        ({"image": 5, "conversations": GOOD}, "has an image that is not the name of a file"),
        ({"image": "a\0b", "conversations": GOOD}, "has an image that is not the name of a file"),
        ({"conversations": GOOD}, f"has 1 <image> for 0 images{ONCE_EACH}"),
        ({"image": "good.jpg", "conversations": turns("What?", "A lamp.")}, f"has 0 <image> for 1 image{ONCE_EACH}"),
        (
            {"image": "good.jpg", "conversations": turns("<image> <image>", "A.")},
            f"has 2 <image> for 1 image{ONCE_EACH}",
        ),
        ({"image": "good.jpg", "conversations": turns("What?", "<image>")}, "has <image> in an answer"),
        ({"conversations": turns("What?", " \n")}, "has an empty answer"),
        ({"conversations": turns("What?")}, "ends with a question that has no answer"),
        ({"conversations": turns("What?", "A.", "And?")}, "ends with a question that has no answer"),
        ({"conversations": turns("a", "b")[::-1]}, "begins with gpt, not with human"),
        ({"conversations": turns("a", "b")[:1] * 2}, "has two turns of human in a row"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "has a turn from 'tool': write human or gpt"),
        ({"conversations": [{"from": "human", "text": "a"}]}, "has a turn 1 without from and value, both texts"),
        ({"messages": []}, "has no conversations, a list of turns with from and value"),
    ],
)
def test_each_fault_is_a_sentence_about_its_sample(folder: Path, sample: dict[str, Any], fault: str) -> None:
    good = {"id": "x", "image": "good.jpg", "conversations": GOOD}
    wanted = f"sample 1 (odd) {fault.format(folder=folder)}"
    assert faults_of(folder, good, {"id": "odd", **sample}, good) == [wanted]


def test_a_web_page_in_place_of_an_image_is_called_one(folder: Path) -> None:
    (found,) = faults_of(folder, {"image": "page.jpg", "conversations": GOOD})
    assert found.startswith(f"sample 0 (0) has a bad image, {folder}/page.jpg: This is a web page (HTML)")


def test_every_missing_image_of_a_sample_is_named(folder: Path) -> None:
    sample = {"image": ["a.png", "good.jpg", "b.png"], "conversations": turns("<image><image><image>", "A.")}
    assert [fault.split("/")[-1].split(" ")[0] for fault in faults_of(folder, sample)] == ["a.png", "b.png"]


def test_whole_images_of_each_kind_are_good(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description " * 4000
    # Longer than what is read of a file at first.
    Image.new("RGB", (40, 30)).save(folder / "long-header.jpg", exif=exif, comment=b"a comment " * 4000)
    assert (folder / "long-header.jpg").stat().st_size > 90_000
    names = ["good.jpg", "good.png", "good.webp", "long-header.jpg"]
    assert faults_of(folder, *({"image": name, "conversations": GOOD} for name in names)) == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["truncated", "flipped", "too large"])
def test_the_ends_of_a_file_say_what_the_whole_file_says(kind: str, folder: Path) -> None:
    model = model_input(served("llava-tiny-1.5", folder))
    path = folder / "odd"

    def size_from(read: Callable[[], Size]) -> Size | None:
        try:
            return read()
        except BadSample:
            return None

    def whole() -> Size:
        measured = read_image(path, model)
        render_image(measured, model)
        return measured.size

    for picture in corpus()[kind]:
        path.write_bytes(picture.data)
        wanted, found = size_from(whole), size_from(lambda: image_size(path, model))
        # A change in the middle is found only by decoding.
        assert found == wanted or (kind == "flipped" and wanted is None), picture.name


def test_the_projector_needs_one_caption_for_its_images(folder: Path) -> None:
    fault = "is not one question with an image and its answer, as the projector is trained on"
    samples = [
        {"image": "good.jpg", "conversations": GOOD},
        {"conversations": turns("What?", "A.")},
        {"image": "good.jpg", "conversations": [*GOOD, *turns("And?", "No.")]},
    ]
    assert faults_of(folder, *samples, plain=True) == [f"sample {index} ({index}) {fault}" for index in (1, 2)]


def test_a_long_sample_is_measured_with_its_images(folder: Path) -> None:
    sample = {"image": "good.jpg", "conversations": GOOD}
    model = model_input(served("llava-tiny-1.5", folder))
    (length,) = check(samples_of(folder, sample), model).lengths
    assert faults_of(folder, sample, max_model_len=length) == []
    (found,) = faults_of(folder, sample, max_model_len=length - 1)
    assert found.endswith(f"has {length} tokens, more than {length - 1} (--max-model-len)")


# Files


def test_a_path_may_have_backslashes_and_leave_the_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "good.jpg").rename(folder / "sub" / "good.jpg")
    names = ["sub\\good.jpg", str(folder / "sub" / "good.jpg"), f"../{folder.name}/sub/good.jpg"]
    assert faults_of(folder, *({"image": name, "conversations": GOOD} for name in names)) == []


def test_json_lines_are_read_and_a_broken_one_is_a_fault(folder: Path) -> None:
    line = json.dumps({"id": "a", "conversations": turns("What?", "A.")})
    (folder / "data.jsonl").write_text(f"{line}\n\n{line[:-5]}\n{line}\n")
    report = check(Samples.read(folder / "data.jsonl", folder), model_input(served("llava-tiny-1.5", folder)))
    assert (report.samples, report.good) == (3, [0, 2])
    assert str(report.faults[0]).startswith("sample 1 (1) is not valid JSON")


def test_a_list_is_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_api.finetune.samples.CHUNK", 11)
    items = [{"id": f"[{number}]", "conversations": turns("Größe, 🐈?", '"}], {"')} for number in range(20)]
    for indent in (None, 4):
        (folder / "data.json").write_text(json.dumps(items, indent=indent, ensure_ascii=False))
        samples = Samples.read(folder / "data.json", folder)
        assert [samples.item(index) for index in range(len(samples))] == items


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[{]", "is not valid JSON: the list is damaged or ends after 0 samples"),
        ('[{"id": 1}, {"id": ', "ends after 1 samples"),
        ('[{"id": 1}', "ends after 1 samples"),
        ("[]", "has no samples"),
        ("", "has no samples"),
        ("image,question\na.png,What?", "must be a list of samples"),
        (json.dumps({"id": "a"}, indent=1), "must be a list of samples"),
        ("[" * 100_000, "is not valid JSON: maximum recursion depth"),
        ("[]".encode("utf-16"), "is not text in UTF-8: save it as UTF-8"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_is_no_data_ends_in_a_sentence(folder: Path, content: str | bytes | None, complaint: str) -> None:
    if content is not None:
        (folder / "data.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StartupError, match=complaint):
        Samples.read(folder / "data.json", folder)


# The command


def finetune(folder: Path, *flags: str) -> int:
    command = ["finetune", "llava-tiny-1.5", "--data", str(folder / "data.json"), "--image-folder", str(folder)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--check-only", *flags])
    return int(ended.value.code or 0)


def test_the_command_shows_what_the_data_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"id": "one", "image": "good.jpg", "source": "web", "conversations": GOOD}
    samples_of(folder, sample, sample, {"id": "two", "conversations": turns("Who?", "A lamp.")})
    assert finetune(folder, "--preview", "1") == 0
    output = capsys.readouterr().out
    for line in (
        "samples  3",
        "images   1 files",
        "  source: in 2 of 3 samples",
        "  id one: samples 0, 1",
        "No faults.",
        "  What is it? ASSISTANT:[[ A lamp.</s>]]",
    ):
        assert line in output.splitlines()
    assert "Sample 1" not in output


def test_many_faults_are_shortened_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples_of(folder, *[{"id": f"n{number}", "conversations": turns("What?", "")} for number in range(100)])
    assert finetune(folder) == 1
    output = capsys.readouterr().out.splitlines()
    assert "Faults: 100" in output
    assert [line for line in output if "empty answer" in line][-1] == "  sample 19 (n19) has an empty answer"
    assert output[-3:] == ["  and 80 more", "", "0 of 100 samples can be learned from."]


@pytest.mark.parametrize(
    ("samples", "flags", "complaint"),
    [
        ([{"conversations": turns("What?", "")}], ["--skip-faulty"], "has no sample that can be learned from"),
        ([{"conversations": turns("What?", "")}, {"conversations": turns("a", "b")}], [], "--skip-faulty"),
    ],
)
def test_training_on_faulty_data_is_refused(
    samples: list[Any], flags: list[str], complaint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples_of(folder, *samples)
    command = ["finetune", "llava-tiny-1.5", "--data", str(folder / "data.json"), "--output", str(folder / "output")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--mode", "full", *flags])
    assert complaint in str(ended.value.code)
    assert not (folder / "output").exists()
