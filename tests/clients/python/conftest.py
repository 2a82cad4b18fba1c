"""Other people's Python clients against a running server, each in an environment that has it.

``tools/client_tests.py`` makes the environments, starts a server and names it in two variables. The project's own
pytest run sets neither and passes these modules by, for their clients are not installed there.
"""

import os

import pytest

BASE_URL = os.environ.get("CLIENTS_BASE_URL")

if BASE_URL is None:
    collect_ignore_glob = ["test_*.py"]

# litellm, when it is imported, fetches a list of prices from the internet otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.fixture(scope="session")
def base_url() -> str:
    assert BASE_URL is not None
    return BASE_URL


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["CLIENTS_MODEL"]
