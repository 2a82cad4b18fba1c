"""``llava-api serve``, killed with SIGKILL in the midst of a batch. ``benchmarks/batch_kills.py`` kills more often."""

from pathlib import Path

from benchmarks.batch_kills import SCRIPTED, run


def test_nothing_is_lost_and_nothing_is_there_twice(tmp_path: Path) -> None:
    run(SCRIPTED, tmp_path, requests=300, kills=3, longest=0.6, seed=1)
