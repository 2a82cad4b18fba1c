"""``benchmarks/home.py`` without its 7B model and without llama.cpp."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import front_end, home, home_files, home_report
from benchmarks.servers import Contestant
from benchmarks.shapes import SEVEN, TINY, make_folder
from llava_api.chat.model import open_model
from llava_api.checkpoints.size import tensor_shapes
from llava_api.checkpoints.whole import check_whole
from llava_api.cli.flags import DEMO, demo_folder
from llava_api.settings import Settings


def scripted(real: Contestant) -> Contestant:
    """The benchmark's own command, with an engine that answers without a model."""

    def command(folder: Path, port: int) -> list[str]:
        arguments = real.command(folder, port)[3:]
        return [sys.executable, "-m", "benchmarks.front_end", front_end.AS_SERVER, *arguments]

    return replace(real, command=command)


def test_the_rehearsal_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = home.ours
    monkeypatch.setattr(home, "ours", lambda name: scripted(real(name)))
    monkeypatch.setattr(home, "ANSWER", 16)
    monkeypatch.setattr(home_files, "PRECISIONS", ("4bit",))
    flags = ["--tiny", "--rounds", "1", "--repeats", "1", "--folder", str(tmp_path)]
    home.main([*flags, "--turns", "1"])
    assert "1 turns are left" in capsys.readouterr().out
    home.main(flags)
    assert "0 turns are left" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert [one["name"] for one in found["turns"]] == ["ours 16bit", "ours 4bit"]
    seconds = ("ready_seconds", "text_seconds", "image_seconds", "follow_up_seconds")
    for one in found["turns"]:
        assert all(one[name] > 0 for name in (*seconds, "memory_ready_gb", "memory_end_gb"))
        assert one["prompt_tokens"]["image"] > 576
        assert one["prompt_tokens"]["follow-up"] > one["prompt_tokens"]["image"]
    assert set(found["made"]) == {"4bit"}
    assert check_whole(tmp_path / "4bit").bytes < check_whole(tmp_path / home_files.CHECKPOINT).bytes
    assert found["turns"][1]["streamed_bytes"] < found["turns"][0]["streamed_bytes"]
    assert "\n| ours 4bit | " in (tmp_path / "home.md").read_text()


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "FREE_BESIDE_WEIGHTS", 10**15)
    entry = home.Entry(home.ours("ours 16bit"), make_folder(tmp_path / "m", TINY))
    with pytest.raises(RuntimeError, match=r"^ours 16bit needs 1000000\.0 GB and .* are free: close other programs"):
        home.turn(entry, tmp_path, home.parser().parse_args([]), 0)


def test_the_shares_of_the_limits_count_the_true_shape(tmp_path: Path) -> None:
    shapes = tensor_shapes(open_model(str(make_folder(tmp_path / "m", SEVEN)), ("m",), Settings()).checkpoint)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    layers = [size for name, size in sizes.items() if name.startswith("language_model.model.layers.") and size > 4096]
    tower = [size for name, size in sizes.items() if name.startswith("vision_tower.")]
    assert sum(layers) == home_report.LINEAR
    assert sum(tower) == home_report.TOWER


def test_ratios_and_bars() -> None:
    seconds = {"ready_seconds": 9, "text_seconds": 1, "follow_up_seconds": 1, "memory_ready_gb": 1, "memory_end_gb": 1}
    rest = {"prompt_tokens": {"image": 622}, "streamed_bytes": 6_500_000_000}
    mine = {"name": "ours 8bit", "image_seconds": 2, "tokens_per_second_1": 2, "tokens_per_second_4": 8}
    theirs = {"name": "llama.cpp Q8_0", "image_seconds": 8, "tokens_per_second_1": 2, "tokens_per_second_4": 2}
    rows = home_report.medians({"turns": [{**seconds, **rest, **mine}, {**seconds, **rest, **theirs}]})
    line = list(home_report.ratio_table(rows))[-1]
    assert "| 0.25 (<= 0.3) | 1.00 | 1.00 (>= 1.3, **missed**) | 4.00 (>= 2.5) |" in line


def test_agreement() -> None:
    reference = [[5, -1.0], [6, -2.0], [7, -3.0]]
    assert home_report.agreement([[5, -1.5], [6, -2.0], [8, -2.0]], reference) == (2, 0.5, 1.0)


def test_probabilities_before_an_image_are_left_out() -> None:
    there, other = {"logprob": -2.0, "rank": 2}, {"logprob": -0.5, "rank": 1}
    assert home.places([None, {"5": other}, None, {"6": there, "7": other}]) == [[7, -2.0]]


def test_llama_cpp_is_built_without_amx() -> None:
    assert home_files.instruction_options(frozenset({"avx2"})) == ["GGML_NATIVE=ON"]
    options = home_files.instruction_options(frozenset({"avx2", "avx512_vnni", "amx_tile", "amx_int8"}))
    assert options == ["GGML_NATIVE=OFF", "GGML_AVX2=ON", "GGML_AVX512_VNNI=ON"]


def test_llama_cpp_gets_a_token_for_each_row(tmp_path: Path) -> None:
    folder = home_files.padded(demo_folder() / DEMO, tmp_path / "padded")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 32_064
