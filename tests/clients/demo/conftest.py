"""One server for all of this folder's tests, for each demo checkpoint in turn."""

from collections.abc import Iterator

import pytest

from tests.clients.conftest import Server, running_server


@pytest.fixture(scope="package", params=["llava-tiny-1.5", "llava-tiny-1.6"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For one of them alone: ``pytest.mark.parametrize("server", [...], indirect=True)``."""
    with running_server(request.param, tmp_path_factory.mktemp("serve") / "terminal.txt") as running:
        yield running
