"""Two minutes of twice what the server can take (``make soak`` is the long form)."""

from benchmarks.soak import soak


def test_under_twice_its_load_nothing_is_lost_and_nothing_grows() -> None:
    found = soak(minutes=2)
    assert not found["faults"], found
    assert found["asked again after a 503"] > 0
    assert found["requests"]["cut in answer"] > 0
