"""Sizes and times as people read them."""

import pytest

from llava_api.units import readable_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (3 * 86_400 + 5, "3 d")],
)
def test_a_time_has_the_unit_that_it_is_read_in(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text
