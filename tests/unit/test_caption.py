"""``llava-api caption``: each image of a folder is asked about."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bulk import read_lines, run, write_image
from tests.support.scripted_api import ScriptedApi, scripted_api

NAMES = ["a.png", "b/c.PNG", "d.jpeg", "e, f.webp"]
CAPTION = "Provide a one-sentence caption for the provided image."


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with scripted_api() as api:
        yield api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in reversed(NAMES):
        write_image(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "._a.png").write_text("what macOS leaves")
    return tmp_path / "images"


def test_a_folder_becomes_jsonl_csv_and_text_files(api: ScriptedApi, folder: Path, tmp_path: Path) -> None:
    output, table = tmp_path / "captions.jsonl", tmp_path / "captions.csv"
    api.said = 'A "red",\nsquare.'
    code, said = run(api.base_url, "caption", folder, "--output", output, "--csv", table, "--sidecars")
    assert (code, said) == (0, f"4 of 4 done in {output}\n")
    caption = f"{api.said} {CAPTION}"
    assert read_lines(output) == [{"image": name, "caption": caption} for name in NAMES]
    with open(table, newline="") as file:
        assert list(csv.reader(file)) == [["image", "caption"], *([name, caption] for name in NAMES)]
    assert [(folder / name).with_suffix(".txt").read_text() for name in NAMES] == [f"{caption}\n"] * 4
    request = api.requests[0]
    assert [part["type"] for part in request["messages"][0]["content"]] == ["image_url", "text"]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0.0, 512)


def test_it_goes_on_and_new_images_are_added_in_their_place(api: ScriptedApi, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    (folder / "b" / "broken.png").write_text("not an image")
    assert run(api.base_url, "caption", folder, "--output", output)[0] == 3
    (failure,) = read_lines(tmp_path / "captions.jsonl.errors.jsonl")
    assert (failure["custom_id"], failure["error"]["code"]) == ("b/broken.png", "invalid_image")
    write_image(folder / "b" / "broken.png")
    assert run(api.base_url, "caption", folder, "--output", output)[0] == 0
    assert [line["image"] for line in read_lines(output)] == sorted([*NAMES, "b/broken.png"])
    assert len(api.requests) == 5


def test_a_name_that_is_no_utf_8_fails_by_itself(api: ScriptedApi, folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    assert run(api.base_url, "caption", folder, "--output", tmp_path / "o.jsonl")[0] == 3
    (failure,) = read_lines(tmp_path / "o.jsonl.errors.jsonl")
    assert (failure["custom_id"], failure["error"]["code"]) == ("\ufffd.png", "invalid_name")
    assert len(read_lines(tmp_path / "o.jsonl")) == 3


def test_a_schema_makes_objects_and_columns(api: ScriptedApi, folder: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}, "sides": {"type": "array"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    output, table = tmp_path / "o.jsonl", tmp_path / "o.csv"
    api.said = '{"colour": "red", "sides": [4]}'
    arguments = ["caption", folder / "*.png", "--output", output, "--question", " ", "--csv", table]
    assert run(api.base_url, *arguments, "--schema", tmp_path / "schema.json")[0] == 0
    assert read_lines(output) == [{"image": str(folder / "a.png"), "caption": {"colour": "red", "sides": [4]}}]
    with open(table, newline="") as file:
        assert list(csv.reader(file)) == [["image", "colour", "sides"], [str(folder / "a.png"), "red", "[4]"]]
    expected = {"type": "json_schema", "json_schema": {"name": "caption", "schema": schema}}
    assert api.requests[0]["response_format"] == expected
    api.said = '{"colour": "re'
    assert run(api.base_url, *arguments[:3], tmp_path / "cut", "--schema", tmp_path / "schema.json")[0] == 3
    (failure,) = read_lines(tmp_path / "cut.errors.jsonl")
    assert failure["error"]["message"] == "The answer is not valid JSON: --max-tokens may have cut it."


def test_mistakes_are_one_line(api: ScriptedApi, folder: Path, tmp_path: Path) -> None:
    def fails(*arguments: str | Path) -> str:
        code, said = run(api.base_url, "caption", *arguments, "--output", tmp_path / "o.jsonl")
        assert (code, said.count("\n")) == (1, 1)
        return said.removeprefix("llava-api: ").replace(str(tmp_path), "FOLDER")

    assert fails(tmp_path / "x*") == "there is no image in FOLDER/x*: name a folder, a pattern or files\n"
    write_image(folder / "a.gif")
    assert fails(folder, "--sidecars") == (
        "--sidecars: 2 images would have the caption file FOLDER/images/a.txt: rename them\n"
    )
    (tmp_path / "s.json").write_text("{")
    assert fails(folder, "--schema", tmp_path / "s.json") == "--schema FOLDER/s.json is not valid JSON\n"
    assert not (tmp_path / "o.jsonl").exists()
