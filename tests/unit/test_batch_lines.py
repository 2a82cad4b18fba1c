"""What is read of a batch's output after the server has ended in the midst of it."""

from pathlib import Path

import orjson
import pytest

from llava_api.batch import lines as batch_lines
from llava_api.batch.lines import Answer, Lines, answered, check, expired, recover
from llava_api.protocol.batches import BatchUsage

BATCH = "batch_0123456789abcdef0123456789abcdef"


def line(number: int) -> bytes:
    body = {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}}
    return answered(BATCH, number, f"nr {number}", Answer(200, "req_1", orjson.dumps(body)))


TORN = {
    "half a line": line(7)[:-20],
    "a line without its end": line(7)[:-1],
    "a hole": b"\0" * 100 + b"\n" + line(7),
    "JSON that is no line": b"5\n{}\n" + line(7),
    "half a line and a whole one": line(7)[:-20] + b"\n" + line(8),
}


@pytest.mark.parametrize("name", TORN)
def test_what_was_not_written_completely_is_cut_off(tmp_path: Path, name: str) -> None:
    path = tmp_path / "output"
    path.write_bytes(line(3) + line(1000) + TORN[name])
    usage = BatchUsage()
    assert list(recover(path, usage)) == [3, 1000]
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 4, 14)
    assert usage.input_tokens_details.cached_tokens == 8
    assert path.read_bytes() == line(3) + line(1000)


def test_an_output_that_was_not_begun(tmp_path: Path) -> None:
    assert list(recover(tmp_path / "none", BatchUsage())) == []


def test_lines_of_requests_that_came_too_late(tmp_path: Path) -> None:
    path = tmp_path / "errors"
    path.write_bytes(expired(BATCH, 2, "nr 2"))
    assert list(recover(path, BatchUsage())) == [2]


def test_blank_lines_are_left_out_and_a_deleted_file_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b'\n{"a":1}\r\n  \n{"a":2}')
    lines = Lines(path, 10)
    path.unlink()
    assert [lines.request(number) for number in range(len(lines))] == [{"a": 1}, {"a": 2}]
    assert list(lines.file_lines) == [2, 4]
    lines.close()


def test_lines_longer_than_a_piece_and_files_of_more_lines_than_a_batch_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "PIECE_BYTES", 4)
    path = tmp_path / "input"
    path.write_bytes(b'      \n{"a":1}\n{"a":22}\n{"a":3}')
    lines = Lines(path, 3)
    assert [lines.request(number) for number in range(len(lines))] == [{"a": 1}, {"a": 22}, {"a": 3}]
    assert list(lines.file_lines) == [2, 3, 4]
    lines.close()
    path.write_bytes(b"x\n" * 100)
    lines = Lines(path, 3)
    # One more shows that there are too many, and no memory is spent on the others.
    assert len(lines) == 4
    lines.close()


@pytest.mark.parametrize(("model", "noted"), [("tiny", "tiny"), ("x" * 1000, None), (["tiny"], None)])
def test_a_model_that_is_noted_may_not_be_a_book(tmp_path: Path, model: object, noted: str | None) -> None:
    """The batch is written anew for each change of its state, and all are sent in lists."""
    path = tmp_path / "input"
    path.write_bytes(orjson.dumps({"custom_id": "a", "method": "POST", "url": "/v1/a", "body": {"model": model}}))
    lines = Lines(path, 1)
    found = check(lines, "/v1/a", 1, 10_000)
    assert (found.errors, found.model) == ([], noted)
    lines.close()
