"""``llava-api batch run``: OpenAI's batch lines at an API that refuses, and a client that is killed."""

import base64
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bulk import read_lines, request_line, run, start, write_image, write_lines
from tests.support.scripted_api import KEY, ScriptedApi, closed_port, question_of, scripted_api
from tests.support.terminal import terminal
from tests.support.waiting import wait_until

ITEMS = 300
KILLS = 5


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with scripted_api() as api:
        yield api


def asked(api: ScriptedApi) -> list[str]:
    """The custom ids in the order in which they were asked for."""
    return [request["messages"][0]["content"][-1]["text"] for request in api.requests]


def test_lines_have_openai_s_form_and_images_are_sent_by_their_path(api: ScriptedApi, tmp_path: Path) -> None:
    image = write_image(tmp_path / "images" / "a b.png")
    remote = "https://example.org/a.png"
    sources = {"path": "images/a b.png", "url": image.as_uri(), "whole": str(image), "remote": remote}
    requests = [request_line(name, image=source) for name, source in sources.items()]
    output = tmp_path / "new" / "out.jsonl"
    code, said = run(api.base_url, "batch", "run", write_lines(tmp_path / "r.jsonl", requests), "--output", output)
    assert (code, said) == (0, f"4 of 4 done in {output}\n")
    sent = {
        request["messages"][0]["content"][1]["text"]: request["messages"][0]["content"][0]["image_url"]["url"]
        for request in api.requests
    }
    encoded = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    assert sent == {"path": encoded, "url": encoded, "whole": encoded, "remote": remote}
    answers = read_lines(output)
    assert [answer["custom_id"] for answer in answers] == list(sources)
    for answer in answers:
        assert list(answer) == ["id", "custom_id", "response", "error"]
        assert answer["id"].startswith("batch_req_")
        assert list(answer["response"]) == ["status_code", "request_id", "body"]
        assert (answer["response"]["status_code"], answer["error"]) == (200, None)
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        assert text.endswith(answer["custom_id"])
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl"]


def test_each_bad_line_has_its_own_error(api: ScriptedApi, tmp_path: Path) -> None:
    write_image(tmp_path / "outside.png")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "text.png").write_text("not an image")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    bad = {
        "refuse": request_line("refuse"),
        "up": request_line("up", image="../outside.png"),
        "root": request_line("root", image=(tmp_path / "outside.png").as_uri()),
        "link": request_line("link", image="link.png"),
        "text": request_line("text", image="text.png"),
        "get": request_line("get", method="GET"),
        "admin": request_line("admin", url="/v1/load_lora_adapter"),
        "stream": request_line("stream", body={"stream": True}),
        "body": request_line("body", body=None),
    }
    requests = write_lines(folder / "r.jsonl", [request_line("good"), *bad.values(), request_line("good"), {"a": 1}])
    with open(requests, "a") as file:
        file.write('\n{"custom_id": \n')
    output = tmp_path / "out.jsonl"
    code, said = run(api.base_url, "batch", "run", requests, "--output", output)
    failed = tmp_path / "out.jsonl.errors.jsonl"
    assert (code, said) == (3, f"1 of 13 done in {output}, 12 failed: see {failed}\n")
    assert [line["custom_id"] for line in read_lines(output)] == ["good"]
    errors = read_lines(failed)
    (refused,) = [line for line in errors if line["custom_id"] == "refuse"]
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["message"] == "The image cannot be read."
    assert refused["error"] is None
    others = [line for line in errors if line["custom_id"] != "refuse"]
    assert all(line["response"] is None for line in others)
    assert Counter((line["custom_id"], line["error"]["code"]) for line in others) == Counter(
        [
            ("up", "image_not_found"),
            ("root", "image_not_found"),
            ("link", "image_not_found"),
            ("text", "invalid_image"),
            ("get", "invalid_method"),
            ("admin", "invalid_url"),
            ("stream", "invalid_request"),
            ("body", "invalid_request"),
            ("good", "duplicate_custom_id"),
            (None, "missing_required_parameter"),
            (None, "invalid_json_line"),
        ]
    )
    assert [line["error"]["message"] for line in others if line["error"]["code"] == "invalid_json_line"] == [
        "Line 14: The line is not valid JSON."
    ]
    assert sorted(asked(api)) == ["good", "refuse"]


def test_a_client_that_is_killed_at_any_moment_goes_on(api: ScriptedApi, tmp_path: Path) -> None:
    api.seconds_between = 0.01
    names = [f"item {number}" for number in range(ITEMS)]
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, names))
    output = tmp_path / "out.jsonl"
    arguments = ["batch", "run", requests, "--output", output, "--concurrency", "4"]
    kept: list[bytes] = []
    for _ in range(KILLS):
        stop_at = len(api.requests) + random.randint(0, ITEMS // KILLS)
        with start(api.base_url, arguments) as process:
            wait_until(lambda stop_at=stop_at: len(api.requests) > stop_at, 30)  # type: ignore[misc]
            process.kill()
        lines = output.read_bytes().splitlines(keepends=True)
        assert lines[: len(kept)] == kept
        kept = lines
        # What a kill in the middle of a write leaves.
        with open(output, "ab") as file:
            file.write(b'{"id":"batch_req_0123"'[: random.randint(0, 22)])
    assert 0 < len(kept) < ITEMS
    code, said = run(api.base_url, *arguments)
    assert (code, said) == (0, f"{ITEMS} of {ITEMS} done in {output}\n")
    answers = read_lines(output)
    assert [answer["custom_id"] for answer in answers] == names
    assert set(kept) <= set(output.read_bytes().splitlines(keepends=True))
    # Only what was under way at a kill is asked for again.
    assert len(asked(api)) <= ITEMS + KILLS * 4
    before = len(api.requests)
    assert run(api.base_url, *arguments)[0] == 0
    assert (len(api.requests), read_lines(output)) == (before, answers)


@pytest.mark.parametrize("status", [429, 503])
def test_a_storm_of_refusals_loses_nothing(api: ScriptedApi, tmp_path: Path, status: int) -> None:
    refused: list[float] = []
    answered: list[float] = []

    def refuse_every_fifth() -> tuple[int, dict[str, str]] | None:
        if len(api.requests) % 5:
            answered.append(time.monotonic())
            return None
        refused.append(time.monotonic())
        return status, {"retry-after-ms": "20"}

    api.refuse_first = refuse_every_fifth
    names = [f"item {number}" for number in range(100)]
    output = tmp_path / "out.jsonl"
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, names))
    code, _ = run(api.base_url, "batch", "run", requests, "--output", output)
    assert code == 0
    assert [line["custom_id"] for line in read_lines(output)] == names
    assert len(answered) == 100
    assert len(api.requests) == 100 + len(refused)


def test_retry_after_is_heeded_by_all_requests(api: ScriptedApi, tmp_path: Path) -> None:
    times: list[float] = []

    def refuse_the_first() -> tuple[int, dict[str, str]] | None:
        times.append(time.monotonic())
        return (429, {"retry-after": "1"}) if len(times) == 1 else None

    api.refuse_first = refuse_the_first
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, "abcd"))
    code, _ = run(api.base_url, "batch", "run", requests, "--output", tmp_path / "o.jsonl", "--concurrency", "1")
    assert code == 0
    assert len(times) == 5
    assert times[1] - times[0] >= 1


def test_ctrl_c_stops_and_the_same_command_goes_on(api: ScriptedApi, tmp_path: Path) -> None:
    api.seconds_between = 0.05
    names = [f"item {number}" for number in range(40)]
    output = tmp_path / "out.jsonl"
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, names))
    arguments = ["batch", "run", requests, "--output", output, "--concurrency", "2", "--order", "finished"]
    with start(api.base_url, arguments) as process:
        wait_until(lambda: len(api.requests) > 5, 30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    done = len(read_lines(output))
    assert process.returncode == 130
    assert said == f"Stopped: the same command goes on from here.\n{done} of 40 done in {output}\n"
    assert 0 < done < 40
    assert run(api.base_url, *arguments)[0] == 0
    assert sorted(line["custom_id"] for line in read_lines(output)) == sorted(names)


def test_what_failed_is_asked_for_again(api: ScriptedApi, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    requests = write_lines(tmp_path / "r.jsonl", [request_line("b"), request_line("a", image="late.png")])
    assert run(api.base_url, "batch", "run", requests, "--output", output)[0] == 3
    write_image(tmp_path / "late.png")
    assert run(api.base_url, "batch", "run", requests, "--output", output)[0] == 0
    assert [line["custom_id"] for line in read_lines(output)] == ["b", "a"]
    assert asked(api) == ["b", "a"]
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


def test_mistakes_are_one_line_and_change_no_file(api: ScriptedApi, tmp_path: Path) -> None:
    requests = write_lines(tmp_path / "r.jsonl", [request_line("a")])

    def fails(*arguments: str | Path, base_url: str = api.base_url) -> str:
        code, said = run(base_url, "batch", "run", requests, *arguments)
        assert code == 1
        return said.splitlines()[-1].replace(str(tmp_path), "FOLDER")

    output = tmp_path / "out.jsonl"
    assert fails("--output", requests) == "llava-api: --output is the file of the requests: name another"
    notes = tmp_path / "notes"
    for text in ("notes without an end", "a line\n", '{"custom_id": "a", "response": null}\n'):
        notes.write_text(text)
        said = fails("--output", notes)
        assert said == "llava-api: FOLDER/notes line 1 is not a line that this command writes: name another file"
        assert notes.read_text() == text
    write_lines(notes, [{"id": "batch_req_1", "custom_id": "other", "response": {"status_code": 200}, "error": None}])
    said = fails("--output", notes)
    assert said == "llava-api: FOLDER/notes has a line that the input does not ask for ('other'): name another file"
    assert fails("--output", output, base_url="ftp://a").startswith("llava-api: --base-url must start with http://")
    api.needed_key = KEY
    assert fails("--output", output) == (
        f"llava-api: the server at {api.base_url} does not accept the API key: name another --api-key-file"
    )


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    port = closed_port()
    requests = write_lines(tmp_path / "r.jsonl", [request_line("a")])
    arguments = ["batch", "run", requests, "--output", tmp_path / "out.jsonl"]
    with start(f"http://127.0.0.1:{port}/v1", arguments) as process:
        wait_until((tmp_path / "out.jsonl").exists, 30)
        with scripted_api(port) as api:
            assert process.wait(30) == 0
            assert asked(api) == ["a"]


def test_a_server_error_is_tried_again_and_then_fails_by_itself(api: ScriptedApi, tmp_path: Path) -> None:
    api.refuse_first = lambda: (500, {}) if question_of(api.requests[-1]) == "bad" else None
    output = tmp_path / "out.jsonl"
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, ["bad", "good"]))
    assert run(api.base_url, "batch", "run", requests, "--output", output, "--concurrency", "1")[0] == 3
    (failure,) = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert failure["error"] == {"code": "server_error", "message": "The server answered with HTTP status 500: Not now."}
    assert Counter(asked(api)) == {"bad": 5, "good": 1}
    assert [line["custom_id"] for line in read_lines(output)] == ["good"]


def test_a_full_disk_leaves_whole_lines(api: ScriptedApi, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    requests = write_lines(tmp_path / "r.jsonl", map(request_line, "abcdefghij"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, said = run(api.base_url, "batch", "run", requests, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, said.splitlines()[-1]) == (1, f"llava-api: {output} cannot be written (File too large)")
    assert 0 < len(read_lines(output)) < 10
    assert output.read_bytes().endswith(b"\n")
    assert run(api.base_url, "batch", "run", requests, "--output", output)[0] == 0
    assert [line["custom_id"] for line in read_lines(output)] == list("abcdefghij")


def test_a_terminal_shows_how_far_it_is(api: ScriptedApi, tmp_path: Path) -> None:
    api.seconds_between = 0.05
    write_image(tmp_path / "a.png")
    lines = [request_line("refuse"), *(request_line(f"item {number}", image="a.png") for number in range(30))]
    requests = write_lines(tmp_path / "r.jsonl", lines)
    arguments = ["batch", "run", str(requests), "--output", str(tmp_path / "out.jsonl"), "--concurrency", "2"]
    environment = os.environ | {"OPENAI_BASE_URL": api.base_url, "TERM": "xterm"}
    with terminal(["-m", "llava_api", *arguments], environment) as shown:
        bar = shown.wait_for(" left")
        assert "/31" in bar
        assert "1 failed" in bar
        assert "images/s" in bar
        assert shown.end() == 3
        assert "30 of 31 done" in shown.raw


def test_two_processes_do_not_write_one_file(api: ScriptedApi, tmp_path: Path) -> None:
    api.seconds_between = 1
    requests = write_lines(tmp_path / "r.jsonl", [request_line("a")])
    arguments = ["batch", "run", requests, "--output", tmp_path / "out.jsonl"]
    with start(api.base_url, arguments) as process:
        wait_until(lambda: api.requests, 30)
        code, said = run(api.base_url, *arguments)
        assert (code, process.wait(30)) == (1, 0)
    assert said == f"llava-api: another process is writing {tmp_path / 'out.jsonl'}: wait for it, or stop it\n"
