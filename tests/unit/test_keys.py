"""API keys: where they come from, how they are held, and what is said where they are none."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.cli.main import main
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing, hashed, new_key
from llava_api.settings import Settings

ANNE, BEN = new_key(), new_key()


def ring(**settings: object) -> KeyRing:
    return KeyRing(Settings.model_validate(settings))


def test_without_sources_no_key_is_needed() -> None:
    assert not ring().needed


def test_keys_of_every_source_are_found(tmp_path: Path) -> None:
    file, folder = tmp_path / "keys", tmp_path / "secret"
    file.write_text(f"# whose\n\nanne = {ANNE}\nben={hashed(BEN)}\n")
    (folder / "..data").mkdir(parents=True)
    cleo = new_key()
    (folder / "cleo").write_text(f"{cleo}\n")
    keys = ring(api_key=["dora=0123456789abcdef"], api_key_file=[str(file)], api_key_dir=[str(folder)])
    assert keys.needed
    presented = {"anne": ANNE, "ben": BEN, "cleo": cleo, "dora": "0123456789abcdef"}
    assert {name: keys.find(key) for name, key in presented.items()} == {name: name for name in presented}
    for wrong in ("", ANNE[:-1], f"{ANNE} ", ANNE.upper(), hashed(ANNE), "anne", "\udcff"):
        assert keys.find(wrong) is None


def test_no_key_is_held_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"anne={ANNE}\n")
    keys = ring(api_key_file=[str(file)])
    assert ANNE not in repr(vars(keys))
    assert ANNE.encode() not in keys.value["anne"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anne", "line 1: write it as name=key"),
        ("anne=short", "is invalid"),
        (f"anne={ANNE}\nanne={BEN}", "given twice"),
        ("anne=sha256:12", "hash of key anne"),
        ("an ne=0123456789abcdefgh", "a key's name"),
        ("anne=0123456789 abcdefgh", "is invalid"),
    ],
)
def test_what_is_no_key_is_said_without_showing_it(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(StartupError, match=said) as caught:
        ring(api_key_file=[str(file)])
    assert "0123456789" not in str(caught.value)
    assert ANNE not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="nowhere"):
        ring(api_key_file=[str(tmp_path / "nowhere")])
    with pytest.raises(StartupError, match="nowhere"):
        ring(api_key_dir=[str(tmp_path / "nowhere")])


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"anne={ANNE}\n")
    keys = ring(api_key_file=[str(file)])
    file.write_text(f"ben={BEN}\n")
    keys.refresh()
    assert (keys.find(ANNE), keys.find(BEN)) == (None, "ben")
    file.write_text("broken")
    keys.refresh()
    assert keys.find(BEN) == "ben"
    file.write_text("")
    keys.refresh()
    assert keys.find(BEN) is None
    assert keys.needed


def test_a_folder_that_cannot_be_looked_into_for_a_moment_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anne").write_text(ANNE)
    keys = ring(api_key_dir=[str(tmp_path)])

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refused)
        keys.refresh()
        assert keys.find(ANNE) == "anne"
    (tmp_path / "anne").unlink()
    keys.refresh()
    assert keys.find(ANNE) is None


def test_a_broken_file_is_told_once_until_something_else_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"anne={ANNE}\n")
    keys = ring(api_key_file=[str(file)])
    for broken in ("anne", "anne=short", f"anne={ANNE}", "anne=short"):
        file.write_text(broken)
        for _ in range(3):
            keys.refresh()
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 3
    assert "line 1" in told[0]
    assert "is invalid" in told[1]
    assert told[2] == told[1]


def test_a_new_key_works_and_its_line_holds_only_the_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "new", "anne"])
    shown = capsys.readouterr()
    key, line = shown.err.split("\n\n")[1], shown.out
    assert key not in line
    (tmp_path / "keys").write_text(line)
    assert ring(api_key_file=[str(tmp_path / "keys")]).find(key) == "anne"


def test_a_key_is_hashed_from_standard_input() -> None:
    command = [sys.executable, "-m", "llava_api", "keys", "hash"]
    done = subprocess.run(command, input=f"{ANNE}\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashed(ANNE)
    refused = subprocess.run(command, input="short\n", capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_the_network_is_not_answered_without_keys_or_a_word(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "llava-tiny-1.5", "--host", host, "--port", "0"])
    assert "--allow-anonymous" in str(ended.value)
