"""--make-key: a server that anybody on the network can reach, and that has no keys, makes one."""

import logging
import re
import socket
from pathlib import Path

import pytest

from llava_api.cli.serve import MADE_KEY_NAME, Front, announce, check_exposure, key_for_this_run
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing
from llava_api.settings import Settings

OPEN = {"host": "0.0.0.0"}
GIVEN = "alice=sk-llava-0123456789abcdef"


def made(**settings: object) -> str | None:
    chosen = Settings(**{**OPEN, **settings})
    return key_for_this_run(chosen, KeyRing(chosen))


def test_each_run_has_another_key() -> None:
    keys = {made(make_key=True) for _ in range(3)}
    assert len(keys) == 3
    assert all(key is not None and re.fullmatch(r"sk-llava-[\w-]{43}", key) for key in keys)


def test_no_key_is_made_unasked() -> None:
    assert made() is None
    with pytest.raises(StartupError, match="--make-key"):
        check_exposure(Settings(**OPEN), KeyRing(Settings(**OPEN)))


@pytest.mark.parametrize("settings", [{"api_key": [GIVEN]}, {"allow_anonymous": True}])
def test_what_the_operator_says_comes_first(settings: dict[str, object]) -> None:
    assert made(make_key=True, **settings) is None


def test_an_empty_folder_of_keys_is_left_empty(tmp_path: Path) -> None:
    """Keys are wanted there, though none has come yet: nobody is answered."""
    assert made(make_key=True, api_key_dir=[str(tmp_path)]) is None


def test_the_key_and_a_curl_line_with_it_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    key = made(make_key=True)
    assert key is not None
    settings = Settings(**OPEN, api_key=[f"{MADE_KEY_NAME}={key}"])
    with caplog.at_level(logging.INFO, "llava_api"), socket.create_server(("127.0.0.1", 0)) as listener:
        announce("llava-tiny-1.5", settings, Front(KeyRing(settings), key, listener, None, None))
    assert f"\n{key}\n" in caplog.text
    curl = next(line for line in caplog.text.splitlines() if line.startswith("curl "))
    assert f"-H 'Authorization: Bearer {key}'" in curl
