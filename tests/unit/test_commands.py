"""``llava-api explain``, ``inspect`` and ``convert`` as a person at a terminal meets them."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from llava_api.cli.flags import demo_folder, read_settings
from llava_api.cli.main import build_parser, main
from llava_api.settings import Settings
from tests.support.golden import cases, golden_image
from tests.support.questions import data_url
from tests.support.tiny_checkpoints import Tiny, write_original, write_original_lora, write_tower
from tests.support.tokenizer import write_checkpoint

REAL_GEOMETRY = {
    "1.5": {"architectures": ["LlavaForConditionalGeneration"]},
    "1.6": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
}


def bare_folder(folder: Path, version: str, **settings: object) -> Path:
    """Config and tokenizer of a checkpoint with real tiles, without weights and without a processor."""
    folder.mkdir(parents=True)
    demo = demo_folder() / f"llava-tiny-{version}"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, folder)
    config = json.loads((demo / "config.json").read_text())
    config |= {**REAL_GEOMETRY[version], **settings}
    config["vision_config"] |= {"image_size": 336, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def request_with(*images: Image.Image, text: str = "What is in this image?") -> dict[str, object]:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"model": "m", "messages": [{"role": "user", "content": parts}]}


class Terminal:
    """Runs a command line in this process and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys = capsys
        self.folder = folder

    def run(self, *arguments: str) -> str:
        main(list(arguments))
        return self.capsys.readouterr().out

    def fails(self, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, str)
        return ended.value.code

    def request_file(self, request: dict[str, object]) -> str:
        path = self.folder / "request.json"
        path.write_text(json.dumps(request))
        return str(path)

    def explain(self, request: dict[str, object], *arguments: str) -> dict[str, object]:
        explained: dict[str, object] = json.loads(self.run("explain", self.request_file(request), "--json", *arguments))
        return explained


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Terminal:
    return Terminal(capsys, tmp_path)


@pytest.mark.parametrize("case", cases("pixels"), ids=lambda case: f"{case['mode']}-{case['width']}x{case['height']}")
def test_explain_gives_the_original_codes_pixels(terminal: Terminal, tmp_path: Path, case: dict[str, object]) -> None:
    version = "1.6" if case["mode"] == "anyres" else "1.5"
    model = bare_folder(tmp_path / "model", version)
    drawing = golden_image(case["width"], case["height"], case["seed"])  # type: ignore[arg-type]
    mode = case["mode"] or "square"
    explained = terminal.explain(request_with(drawing), "--model", str(model), "--image-mode", str(mode))
    (image,) = explained["images"]  # type: ignore[misc]
    assert image["pixels_sha256"] == case["sha256_float32"]
    assert image["pixels_shape"] == case["shape"]
    assert (image["width"], image["height"], image["format"]) == (case["width"], case["height"], "PNG")


def test_explain_gives_the_original_codes_grids_and_counts(terminal: Terminal, tmp_path: Path) -> None:
    model = bare_folder(tmp_path / "model", "1.6")
    golden = [case for case in cases("anyres") if case["width"] * case["height"] < 1_000_000][:12]
    drawings = [Image.new("RGB", (case["width"], case["height"]), "red") for case in golden]
    explained = terminal.explain(request_with(*drawings), "--model", str(model))
    images = explained["images"]
    assert [image["grid"] for image in images] == [case["grid"] for case in golden]  # type: ignore[attr-defined]
    counts = [case["image_tokens"] for case in golden]
    assert [image["image_tokens"] for image in images] == counts  # type: ignore[attr-defined]
    assert explained["image_tokens"] == sum(counts)
    ids, places = explained["prompt_token_ids"], explained["placeholders"]
    assert [place["length"] for place in places] == counts  # type: ignore[attr-defined]
    for place in places:  # type: ignore[attr-defined]
        inside = ids[place["offset"] : place["offset"] + place["length"]]  # type: ignore[index]
        assert set(inside) == {766}
    assert explained["prompt_tokens"] == len(ids)  # type: ignore[arg-type]
    assert explained["context_left"] == 2048 - len(ids)  # type: ignore[arg-type]


def test_the_checkpoints_own_settings_decide(terminal: Terminal, tmp_path: Path) -> None:
    request = request_with(Image.new("RGB", (640, 480)))
    squared = bare_folder(tmp_path / "square", "1.5", image_aspect_ratio="square")
    assert terminal.explain(request, "--model", str(squared))["image_mode"] == "square"
    for merge in ("flat", "spatial"):
        tiled = bare_folder(tmp_path / merge, "1.6", image_aspect_ratio="anyres", mm_patch_merge_type=merge)
        assert terminal.explain(request, "--model", str(tiled))["image_tokens"] == 576 * 5
    padded = bare_folder(tmp_path / "pad", "1.6", image_aspect_ratio="pad")
    assert terminal.explain(request, "--model", str(padded))["image_tokens"] == 576
    # What hub copies lost is as their architecture was trained.
    lost = bare_folder(tmp_path / "lost", "1.6")
    assert terminal.explain(request, "--model", str(lost))["image_mode"] == "anyres"


def test_hf_mode_is_what_transformers_does(terminal: Terminal, tmp_path: Path) -> None:
    import hashlib

    from transformers import AutoImageProcessor

    for name in ("llava-tiny-1.5", "llava-tiny-1.6"):
        processor = AutoImageProcessor.from_pretrained(demo_folder() / name)
        for size in ((300, 200), (100, 60)):
            drawing = golden_image(*size, 3)
            pixels = processor(images=drawing, return_tensors="np")["pixel_values"][0]
            explained = terminal.explain(request_with(drawing), "--model", name, "--image-mode", "hf")
            (image,) = explained["images"]  # type: ignore[misc]
            assert image["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
            assert image["mode"] == "hf"


def test_save_images_writes_what_the_model_sees(terminal: Terminal, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    request = terminal.request_file(request_with(Image.new("RGB", (400, 200), (255, 0, 0))))
    printed = terminal.run("explain", request, "--save-images", str(shown))
    with Image.open(shown / "image-1.png") as padded:
        assert padded.size == (224, 224)
        assert padded.getpixel((112, 112)) == (255, 0, 0)
        # The padding can be seen: CLIP's mean.
        assert padded.getpixel((112, 5)) == (122, 116, 104)
    assert "image-1.png" in printed
    terminal.run("explain", request, "--model", "llava-tiny-1.6", "--save-images", str(shown))
    names = sorted(path.name for path in shown.iterdir())
    assert names == [
        "image-1-1-1.png",
        "image-1-1-2.png",
        "image-1-base.png",
        "image-1-grid.png",
        "image-1.png",
    ]


def test_the_page_for_people_tells_the_same(terminal: Terminal) -> None:
    request = request_with(Image.new("RGB", (300, 200)), text="How many?")
    page = terminal.run("explain", terminal.request_file(request))
    explained = terminal.explain(request)
    assert f"{explained['prompt_tokens']} tokens" in page
    assert "USER: <image>" in page
    assert "[image 1: 64 x 766]" in page
    assert explained["images"][0]["pixels_sha256"] in page  # type: ignore[index]


def test_a_request_on_standard_input_and_without_a_model(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    assert json.loads(terminal.run("explain", "-", "--json"))["images"] == []


def test_a_request_too_long_is_explained_all_the_same(terminal: Terminal) -> None:
    request: dict[str, object] = {"messages": [{"role": "user", "content": "long " * 900}]}
    explained = terminal.explain(request)
    assert int(str(explained["context_left"])) < 0
    assert "too long by" in terminal.run("explain", terminal.request_file(request))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not valid JSON"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "user", "content": "a"}], "temperature": "hot"}', "temperature"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", '
            '"image_url": {"url": "data:;base64,AAAA"}}]}]}',
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_a_bad_request_is_one_sentence(terminal: Terminal, tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "bad.json").write_text(body)
    message = terminal.fails("explain", str(tmp_path / "bad.json"))
    assert message.startswith("llava-api: ")
    assert words in message
    assert "cannot read" in terminal.fails("explain", str(tmp_path / "none.json"))


def test_inspect_says_what_a_folder_is(terminal: Terminal, tmp_path: Path) -> None:
    tiny = Tiny("mistral", "1.6")
    original = write_original(tiny, tmp_path / "o", write_tower(tiny, tmp_path / "tower"))
    facts = json.loads(terminal.run("inspect", str(original), "--json"))
    assert (facts["format"], facts["architecture"]) == ("original", "LLaVA-1.6")
    assert (facts["prompt_family"], facts["image_mode"]) == ("mistral_instruct", "anyres")
    assert facts["memory_bytes"]["float32"] == 4 * facts["parameters"]
    facts = json.loads(terminal.run("inspect", "llava-tiny-1.5", "--json"))
    stored = load_file(demo_folder() / "llava-tiny-1.5" / "model.safetensors")
    assert (facts["format"], facts["parameters"]) == ("hub", sum(tensor.numel() for tensor in stored.values()))
    assert "prompt family  " in terminal.run("inspect", "llava-tiny-1.5")


def test_inspect_knows_transformers_defaults_of_a_short_config(terminal: Terminal, tmp_path: Path) -> None:
    facts = json.loads(terminal.run("inspect", str(write_checkpoint(tmp_path / "short")), "--json"))
    assert (facts["layers"], facts["hidden_size"], facts["vocabulary"]) == (32, 4096, 32000)


def test_inspect_names_what_is_missing(terminal: Terminal, tmp_path: Path) -> None:
    tiny = Tiny("llama", "1.5")
    original = write_original(tiny, tmp_path / "o", write_tower(tiny, tmp_path / "tower"))
    next(original.glob("*.bin")).unlink()
    assert "is missing" in json.loads(terminal.run("inspect", str(original), "--json"))["weights"]


def test_convert_writes_a_folder_that_is_served_as_it_is(terminal: Terminal, tmp_path: Path) -> None:
    tiny = Tiny("llama", "1.5")
    tower = write_tower(tiny, tmp_path / "tower")
    lora = write_original_lora(tiny, tmp_path / "lora", tmp_path / "base", tower)
    target = tmp_path / "converted"
    terminal.run("convert", str(lora), str(target), "--model-base", str(tmp_path / "base"))
    assert json.loads(terminal.run("inspect", str(target), "--json"))["format"] == "hub"
    assert "exists already" in terminal.fails("convert", str(lora), str(target), "--model-base", str(tmp_path / "base"))
    assert "hub's format already" in terminal.fails("convert", str(target), str(tmp_path / "again"))


def test_convert_names_a_place_where_nothing_can_be_written(terminal: Terminal) -> None:
    message = terminal.fails("convert", "llava-tiny-1.5", "/proc/out", "--quantize", "8bit")
    assert message.startswith(
        "llava-api: cannot write the converted checkpoint to /proc/out (No such file or directory)"
    )


def test_convert_names_a_source_that_is_not_there(terminal: Terminal, tmp_path: Path) -> None:
    message = terminal.fails("convert", str(tmp_path / "none"), str(tmp_path / "target"))
    assert message.endswith("give the path of a checkpoint folder or a hub id")


def test_a_servers_variables_do_not_stop_the_other_commands(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_LORA", "birds=/no/such/folder")
    monkeypatch.setenv("LLAVA_LOAD_4BIT", "true")
    assert "format" in terminal.run("inspect", "llava-tiny-1.5")
    # A request to an adapter is shown what a request to the model is.
    request: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]}
    asked = [terminal.explain(made)["prompt_token_ids"] for made in ({**request, "model": "birds"}, request)]
    assert asked[0] == asked[1]


def test_an_empty_flag_or_variable_is_one_that_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*flags: str) -> Settings:
        return read_settings(build_parser().parse_args(["serve", "model", *flags]))

    assert chosen("--host", "", "--lora", "", "--port", "", "--model-base", "") == Settings()
    assert chosen("--host", "", "--port", "0", "--no-exif-orientation") == Settings(port=0, exif_orientation=False)
    for name in ("HOST", "LORA", "PORT", "MODEL_BASE", "MAX_MODEL_LEN", "IMAGE_MODE"):
        monkeypatch.setenv(f"LLAVA_{name}", "")
    assert chosen().model_dump() == Settings.model_construct().model_dump()
    assert chosen().host == "127.0.0.1"
