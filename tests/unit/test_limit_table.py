"""What each key may: the settings' defaults, the file's exceptions, and what is said of a file that is wrong."""

import logging
from pathlib import Path

import pytest

from llava_api.cli.main import main
from llava_api.errors import StartupError
from llava_api.limits.table import CallerLimits, LimitTable, caller_of_key
from llava_api.settings import Settings

STORED = 20_000_000_000, 100_000, 100
ANNE, BEN = caller_of_key("anne"), caller_of_key("ben")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "limits.toml"


def table_of(file: Path, **settings: object) -> LimitTable:
    return LimitTable(Settings.model_validate({"key_limits_file": str(file), **settings}))


def test_without_settings_there_is_no_limit() -> None:
    assert LimitTable(Settings()).limits_of("192.0.2.1") == CallerLimits(None, None, None, None, None, 1.0, *STORED)


def test_a_key_has_its_own_limits_and_the_defaults_for_the_rest(file: Path) -> None:
    anne = '[anne]\nrequests_per_minute = 600\ntokens_per_minute = "none"\nweight = 4\n'
    file.write_text(anne + '[ben]\nweight = 0.5\nmax_stored_bytes = 0\nmax_stored_files = "none"\n')
    table = table_of(file, requests_per_minute=60, tokens_per_minute=1000, images_per_minute=5)
    assert table.limits_of(ANNE) == CallerLimits(600, None, 5, None, None, 4.0, *STORED)
    assert table.limits_of(BEN) == CallerLimits(60, 1000, 5, None, None, 0.5, 0, None, 100)
    # An address called like a key is not the key.
    for other in ("anne", caller_of_key("cleo"), "192.0.2.1"):
        assert table.limits_of(other) == table.default


WRONG = {
    "no limit of that name": ("[anne]\nrequests = 5", "key anne, requests: there is no such limit"),
    "not a number": ("[anne]\nweight = nan", "key anne, weight"),
    "endless": ("[anne]\nweight = inf", "key anne, weight"),
    "no weight": ("[anne]\nweight = 0", "key anne, weight"),
    "a negative weight": ("[anne]\nweight = -1", "key anne, weight"),
    "a number as text": ('[anne]\nrequests_per_minute = "5"', "key anne, requests_per_minute"),
    "a fraction": ("[anne]\ntokens_per_minute = 1.5", "key anne, tokens_per_minute"),
    "a truth": ("[anne]\ntokens_per_minute = true", "key anne, tokens_per_minute"),
    "below nothing": ("[anne]\nimages_per_minute = -1", "key anne, images_per_minute"),
    "a number beyond all": (f"[anne]\ntokens_per_minute = 1{'0' * 4000}", "key anne, tokens_per_minute"),
    "none of a weight": ('[anne]\nweight = "none"', "key anne, weight"),
    "no table": ("anne = 5", "key anne: "),
    "the same key twice": ("[anne]\n[anne]", "is not TOML"),
    "no TOML": ("anne: 5", "is not TOML"),
    "far too deep": ("a = " + "[" * 100_000, "is not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_an_error_that_names_the_place(file: Path, name: str) -> None:
    text, said = WRONG[name]
    file.write_text(text)
    with pytest.raises(StartupError) as caught:
        table_of(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_that_is_not_there_or_no_text_is_an_error(file: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        table_of(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StartupError, match="cannot be read: not text"):
        table_of(file)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file.write_text("[anne]\nrequests_per_minute = 1\n")
    table = table_of(file)
    file.write_text("[anne]\nrequests_per_minute = 2\n")
    table.refresh()
    assert table.limits_of(ANNE).requests_per_minute == 2
    file.write_text("[anne]\nrequests_per_minute = 0\n")
    for _ in range(3):
        table.refresh()
    assert table.limits_of(ANNE).requests_per_minute == 2
    # Said once, not with each look.
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
    assert "requests_per_minute" in caplog.text
    file.unlink()
    for _ in range(3):
        table.refresh()
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "ERROR"]
    file.write_text("")
    table.refresh()
    assert table.limits_of(ANNE).requests_per_minute is None


def test_a_name_that_no_key_has_is_pointed_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("[anne]\n[bem]\n")
    table_of(file).warn_of_unknown_keys(["anne", "ben"])
    assert "bem" in caplog.text
    assert "anne" not in caplog.text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--key-limits-file", "nowhere.toml"], "--key-limits-file nowhere.toml cannot be read"),
        (["--requests-per-minute", "0"], "--requests-per-minute"),
        (["--tokens-per-minute", "nan"], "--tokens-per-minute"),
        (["--rate-limit-redis-url", "http://localhost"], "--rate-limit-redis-url"),
        (["--rate-limit-redis-url", "redis://:secret@localhost:port"], "--rate-limit-redis-url"),
        (["--rate-limit-redis-url", "redis://:secret@localhost"], "--rate-limit-redis-url"),
        (["--rate-limit-redis-url", "redis://"], "--rate-limit-redis-url"),
        (["--rate-limit-redis-url", "redis://:secret@localhost:6379/x"], "--rate-limit-redis-url"),
        (["--rate-limit-redis-url", "redis://:secret@localhost:6379?secret=1"], "--rate-limit-redis-url"),
    ],
)
def test_the_server_does_not_start_with_limits_that_are_wrong(flags: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "llava-tiny-1.5", "--port", "0", *flags])
    assert said in str(ended.value)
    assert "secret" not in str(ended.value)
