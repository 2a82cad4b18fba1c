"""``benchmarks/gpu.py`` without a GPU: its rehearsal, and what it lets vLLM load."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import front_end, gpu, gpu_fidelity
from benchmarks.load import send
from benchmarks.servers import Contestant
from benchmarks.shapes import SEVEN, TINY, make_folder
from llava_api.chat.model import open_model
from llava_api.checkpoints.size import Precision, count_parameters
from llava_api.cli import machine
from llava_api.cli.start_checks import check_start
from llava_api.settings import Settings
from tests.support.golden import cases
from tests.support.small_engine import SmallEngine, image_request, no_collecting


def test_the_rehearsal_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With scripted engines: real ones would take minutes."""
    monkeypatch.setattr(gpu, "ours", lambda dtype: replace(front_end.FRONT_END, name="llava-api"))
    monkeypatch.setattr(gpu, "peer", lambda dtype: Contestant("vllm serve", front_end.command, {}))
    first = gpu.runs(True)[:2]
    monkeypatch.setattr(gpu, "runs", lambda rehearsal: first)
    with no_collecting():
        gpu.main(["--rehearse", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fidelity"] == {"device": "cpu", "wrong_pixels": [], "wrong_ids": []}
    mine, theirs = found["runs"]["tiny llava-api"], found["runs"]["tiny vllm serve"]
    figures = {"start s", "first token ms, text", "first token ms, image", "tokens/s, 1 streams", "tokens/s, 2 streams"}
    figures |= {"images/s, 336x336", "images/s, 1024x768"}
    assert all(mine[name] > 0 and theirs[name] > 0 for name in figures)
    assert mine["answers"]["text"] == mine["answers"]["two_images"] == "ok"
    # The scripted engine writes words, whatever the grammar.
    assert mine["answers"]["json_schema"].startswith("JSONDecodeError")
    assert mine["after kill -9"]["left"] == []


def test_what_does_not_fit_into_the_time_is_named(tmp_path: Path) -> None:
    gpu.main(["--rehearse", "--seconds", "1", "--only", "bit", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert list(found) == ["tiny 4bit llava-api", "tiny 8bit llava-api"]
    assert all("s are left" in run["skipped"] for run in found.values())


def test_a_server_that_starts_too_slowly_is_ended(tmp_path: Path) -> None:
    slow = Contestant("slow", lambda folder, port: ["sleep", "60"], {})
    report, bodies = gpu.Report(None), gpu.Bodies(gpu.REHEARSAL)
    run = gpu.Run("tiny", TINY, slow)
    gpu.do(run, tmp_path, tmp_path, bodies, report, time.monotonic() + 0.3, last=False)
    assert "did not start in time" in report.found["runs"]["tiny slow"]["failed"]


def test_no_answer_is_waited_for_after_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, no_collecting():
        first, *others = send(silent.getsockname()[1], [b"{}"] * 3, 1, time.monotonic() + 0.3)
    assert first.broken is not None
    assert others == []


def test_nothing_is_measured_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_smi", lambda: ())
    gpu.main([])
    assert "nothing was measured" in capsys.readouterr().out


def test_another_pixel_or_prompt_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(name: str) -> list[dict[str, Any]]:
        if name == "pixels":
            first, second = cases(name)[:2]
            return [{**first, "seed": 5}, second]
        first, second = [case for case in cases(name) if case["template"] == "vicuna_v1"][:2]
        return [first, {**second, "prompt": second["prompt"] + " "}]

    monkeypatch.setattr(gpu_fidelity, "cases", changed)
    found = gpu_fidelity.fidelity(make_folder(tmp_path / "m", TINY), "cpu")
    assert found["wrong_pixels"] == ["pad 64x64"]
    assert found["wrong_ids"] == ["text_only"]


@pytest.mark.parametrize("precision", [None, "4bit", "8bit"])
def test_vllm_makes_up_the_weights(tmp_path: Path, precision: Precision | None) -> None:
    settings = Settings(engine_arg=["load_format=dummy"], dtype="bfloat16", max_model_len=1024)
    model = open_model(str(make_folder(tmp_path / "m", TINY, precision)), ("m",), settings)
    check_start(model, settings)
    with SmallEngine(model, settings) as engine:
        answer = engine.greedy(image_request(model, Image.new("RGB", (336, 336)), "a"), 4)
        layers = engine.engine.model_executor.driver_worker.get_model().language_model.model.layers
    assert len(answer.token_ids) == 4
    assert engine.features == [576]
    quantized = precision is not None
    assert (type(layers[0].mlp.down_proj.quant_method).__name__ != "UnquantizedLinearMethod") is quantized


def test_the_shape_is_that_of_the_7b(tmp_path: Path) -> None:
    checkpoint = open_model(str(make_folder(tmp_path / "m", SEVEN)), ("m",), Settings()).checkpoint
    # llava-hf/llava-1.5-7b-hf has 7.06 billion.
    assert count_parameters(checkpoint).total == pytest.approx(7.06e9, rel=0.002)
