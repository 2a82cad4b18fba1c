"""The server of each demo checkpoint in turn, for all of this folder's tests."""

from collections.abc import Callable

import pytest

from tests.support.serve import Server


@pytest.fixture(scope="package", params=["llava-tiny-1.5", "llava-tiny-1.6"])
def server(request: pytest.FixtureRequest, demo_server: Callable[[str], Server]) -> Server:
    """For one checkpoint only: ``pytest.mark.parametrize("server", [...], indirect=True)``."""
    return demo_server(request.param)
