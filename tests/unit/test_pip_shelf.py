"""pip's settings of this machine, as they are handed to a build of the image."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tools.pip_shelf import pip_conf, settings_in


def test_a_variable_goes_before_a_file() -> None:
    listing = "global.index-url='https://a.example/simple'\n:env:.index-url='https://b.example'\nglobal.retries='2'\n"
    assert settings_in(listing) == {"index-url": "https://b.example", "retries": "2"}
    assert settings_in("") == {}


def test_what_is_on_the_network_stays_as_it_is() -> None:
    with pip_conf({"index-url": "https://a.example/simple", "no-color": "1"}) as text:
        assert text == "[global]\nindex-url = https://a.example/simple\n"


def test_a_certificate_is_where_the_dockerfile_mounts_it() -> None:
    with pip_conf({"cert": "/home/me/ca.pem"}) as text:
        assert text == "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"
    assert (
        "id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt" in (Path(__file__).parents[2] / "Dockerfile").read_text()
    )


def test_a_folder_is_served_and_nothing_beside_it(tmp_path: Path) -> None:
    wheels, secret = tmp_path / "wheels", tmp_path / "secret"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").write_text("a wheel")
    secret.write_text("not for you")
    with pip_conf({"find-links": str(wheels)}) as text:
        address = text.split("find-links = ")[1].strip()
        with urllib.request.urlopen(f"{address}a-1-py3-none-any.whl", timeout=10) as answer:
            assert answer.read() == b"a wheel"
        for path in ("../secret", "%2e%2e/secret"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}{path}", timeout=10)
            refused.value.close()
            assert refused.value.code == 404


def test_an_index_on_disk_is_served_with_the_files_that_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "simple" / "a").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "simple" / "a" / "index.html").write_text('<a href="../../files/a.whl">a.whl</a>')
    (tmp_path / "files" / "a.whl").write_text("a wheel")
    with pip_conf({"extra-index-url": f"file://{tmp_path}/simple"}) as text:
        address = text.split("extra-index-url = ")[1].strip()
        with urllib.request.urlopen(f"{address}a/../../files/a.whl", timeout=10) as answer:
            assert answer.read() == b"a wheel"
