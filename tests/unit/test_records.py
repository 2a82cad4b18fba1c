"""The record of a request: what its moments add up to."""

import asyncio
from time import perf_counter

import pytest

from llava_api.telemetry.metrics import GapHistogram, Metrics
from llava_api.telemetry.record import GAP_BOUNDS_SECONDS, RECORD, AnswerRecord, RequestRecord, current

ASKED = AnswerRecord(10, 0, 0, 1, 50, 1.0)


def test_tokens_that_come_together_share_their_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("llava_api.telemetry.record.perf_counter", lambda: now)
    answer = AnswerRecord(10, 0, 0, 2, 50, 1.0)
    answer.count(0, 1)
    answer.count(1, 1)
    now = 100.11
    answer.count(0, 4)
    answer.count(0, 0)
    now = 107.11
    answer.count(1, 1)
    answer.count(0, 1)
    assert answer.first_token == 100.0
    metrics = Metrics({"version": "1"})
    metrics.gaps.add(answer.gaps, answer.gap_seconds)
    samples = {(s.name, s.labels.get("le")): s.value for family in metrics.gaps.collect() for s in family.samples}
    assert samples[(f"{GapHistogram.NAME}_bucket", "0.025")] == 0
    # Four tokens in 0.11 s; the two of 7 s and more are in the last.
    assert samples[(f"{GapHistogram.NAME}_bucket", "0.03")] == 4
    assert samples[(f"{GapHistogram.NAME}_bucket", "5.0")] == 4
    assert samples[(f"{GapHistogram.NAME}_bucket", "+Inf")] == samples[(f"{GapHistogram.NAME}_count", None)] == 6
    assert samples[(f"{GapHistogram.NAME}_sum", None)] == pytest.approx(0.11 + 7.0 + 7.11)


def test_bounds_are_in_order() -> None:
    assert list(GAP_BOUNDS_SECONDS) == sorted(set(GAP_BOUNDS_SECONDS))


@pytest.mark.parametrize(
    ("noted", "outcome"),
    [
        ({"status": 200, "complete": True}, "ok"),
        ({"status": 200}, "cut"),
        ({"status": 0}, "cut"),
        ({"status": 200, "client_gone": True}, "client_gone"),
        ({"status": 200, "complete": True, "error": "request_timeout"}, "failed"),
        ({"status": 429, "complete": True, "error": "rate_limit_exceeded"}, "refused"),
        ({"status": 503, "complete": True, "error": "queue_full"}, "refused"),
        ({"status": 503, "complete": True, "error": "engine_stopped"}, "failed"),
        ({"status": 503, "complete": True, "error": "server_stopping"}, "refused"),
        ({"status": 503, "complete": True, "error": "server_stopping", "answers": [ASKED]}, "cut"),
        ({"status": 200, "complete": True, "error": "server_stopping", "answers": [ASKED]}, "cut"),
        ({"status": 500, "complete": True, "error": ""}, "failed"),
        ({"status": 404, "complete": True}, "refused"),
    ],
)
def test_outcomes(noted: dict[str, object], outcome: str) -> None:
    record = RequestRecord()
    for name, value in noted.items():
        setattr(record, name, value)
    assert record.outcome == outcome


async def test_every_task_of_a_request_notes_into_its_record() -> None:
    async def work(name: str) -> None:
        record = RequestRecord(request_id=name)
        token = RECORD.set(record)
        await asyncio.gather(*(asyncio.create_task(note()) for _ in range(3)))
        await asyncio.to_thread(lambda: current().note_image(1, 1, 1))
        assert record.images == 4
        RECORD.reset(token)

    async def note() -> None:
        await asyncio.sleep(0)
        current().note_image(10, 100, 5)

    await asyncio.gather(*(asyncio.create_task(work(f"req_{number}")) for number in range(5)))
    # Outside of a request there is one that nobody reads.
    current().note_image(1, 1, 1)
    assert current().images == 0


def test_nothing_is_nan_where_nothing_came() -> None:
    record = RequestRecord()
    record.note_prompt(5, [], 1, 10, 1.0)
    record.end("other", None)
    assert (record.first_token_seconds, record.queue_seconds, record.completion_tokens) == (None, None, 0)
    assert 0 <= record.seconds <= perf_counter() - record.started
    metrics = Metrics({"version": "1"})
    metrics.begin(record)
    metrics.end(record)
    assert b"llava_api_time_to_first_token_seconds_count 0.0" in metrics.page("")[0]
