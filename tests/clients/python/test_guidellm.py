"""``guidellm``: benchmarks of images, of conversations and of completions have no errors and no zeros."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asked import CLIENTS, QUESTIONS

CHECKPOINTS = CLIENTS.parent.parent / "src" / "llava_api" / "demo"


def benchmark(base_url: str, model: str, folder: Path, data: str, path: str, requests: int) -> dict[str, Any]:
    """The report of a run in which every request was answered."""
    report = folder / "report.json"
    options = {
        "backend": f"kind=openai_http,target={base_url},model={model},request_format={path}",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_requests,count={requests}",
        "data": data,
        "tokenizer": f"kind=huggingface_auto,model={CHECKPOINTS / model}",
        "output": f"kind=json,path={report}",
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    command = [str(Path(sys.executable).parent / "guidellm"), "run", *arguments, "--disable-console"]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads(report.read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (requests, 0, 0)
    for name in ("prompt_token_count", "output_token_count", "time_to_first_token_ms", "output_tokens_per_second"):
        assert found["metrics"][name]["successful"]["mean"] > 0, name
    return dict(found)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_images(base_url: str, model: str, tmp_path: Path, path: str) -> None:
    rows = [{"prompt": question.text, "image": str(question.picture)} for question in QUESTIONS]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(rows))
    found = benchmark(base_url, model, tmp_path, f"kind=json_file,path={questions}", path, len(QUESTIONS))
    answered = found["requests"]["successful"]
    assert sorted(each["output"] for each in answered) == sorted(question.answer for question in QUESTIONS)


def test_conversations(base_url: str, model: str, tmp_path: Path) -> None:
    data = "kind=synthetic_text,prompt_tokens=20,output_tokens=8,turns=2"
    found = benchmark(base_url, model, tmp_path, data, "/v1/chat/completions", 4)
    first, second = sorted({each["info"]["turn_index"] for each in found["requests"]["successful"]})
    assert (first, second) == (0, 1)
    assert found["metrics"]["output_token_count"]["successful"]["mean"] == 8


def test_completions(base_url: str, model: str, tmp_path: Path) -> None:
    data = "kind=synthetic_text,prompt_tokens=20,output_tokens=8"
    found = benchmark(base_url, model, tmp_path, data, "/v1/completions", 4)
    assert found["metrics"]["output_token_count"]["successful"]["mean"] == 8
