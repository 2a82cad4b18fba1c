"""values.yaml, its documentation and its schema say the same, and a value that is misspelt is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helm_python import lint
from helm_python.errors import HelmError

import llava_api
from tests.support.chart import CHART, ROOT, Object, loaded, rendered

VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
ADDED = {"key", "name", "names", "kind", "apiVersion"}
"""What llava-api.servers puts beside the values."""


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    script = root / "tools" / "chart_docs.py"
    return subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)


def test_schema_readme_and_dashboard_are_fresh() -> None:
    checked = run_check(ROOT)
    assert checked.returncode == 0, checked.stderr


def test_stale_files_fail_with_a_hint_of_one_line(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "helm" / "llava-api")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "chart_docs.py", tmp_path / "tools")
    values = tmp_path / "helm" / "llava-api" / "values.yaml"
    values.write_text(values.read_text().replace("\nreplicas: 1\n", "\nreplicas: 2\n"))
    checked = run_check(tmp_path)
    assert checked.returncode == 1
    (hint,) = checked.stderr.strip().splitlines()
    assert "README.md" in hint
    assert "tools/chart_docs.py" in hint


def test_value_without_a_comment_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "helm" / "llava-api")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "chart_docs.py", tmp_path / "tools")
    values = tmp_path / "helm" / "llava-api" / "values.yaml"
    values.write_text(values.read_text() + "\nsecret_knob: 1\n")
    checked = run_check(tmp_path)
    assert checked.returncode == 1
    assert "secret_knob" in checked.stderr


def test_helm_lints_without_a_warning() -> None:
    report = lint(CHART, strict=True, kube_version="v1.30.0")
    assert not report["errors"]
    assert [one for one in report["messages"] if one["severity"] > 1] == []


def test_image_is_that_of_this_version() -> None:
    assert loaded().metadata["appVersion"] == llava_api.__version__


def closed(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(where, a name that is known there) of every map whose names are known."""
    if schema.get("additionalProperties") is False:
        yield path, next(iter(schema["properties"]))
    for name, inside in schema.get("properties", {}).items():
        yield from closed(inside, (*path, name))


@pytest.mark.parametrize(("path", "known"), list(closed(SCHEMA)), ids=lambda value: ".".join(value) or "top")
def test_misspelt_value_is_refused(path: tuple[str, ...], known: str) -> None:
    values: Object = {f"{known}x": 1}
    for name in reversed(path):
        values = {name: values}
    with pytest.raises(HelmError, match=f"{known}x"):
        rendered(values)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"replicas": "three"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"gpu": {"count": 0.5}}, "count"),
        ({"download": {"mode": False}}, "mode"),  # what YAML makes of an unquoted off
        ({"download": {"mode": "jobs"}}, "mode"),
        ({"settings": {"max_modl_len": 1}}, "max_modl_len"),
        ({"settings": {"max_model_len": "many"}}, "max_model_len"),
        ({"settings": {"api_key": "anne=sk-llava-0123456789"}}, "api_key"),
        ({"settings": {"host": "::"}}, "host"),
        ({"settings": {"image_mode": "squared"}}, "image_mode"),
        ({"apiKeys": {"values": {"anne": "short"}}}, "anne"),
        ({"models": [{"model": "llava-tiny-1.5"}]}, "name"),
        ({"models": [{"name": "Big One", "model": "x"}]}, "name"),
        ({"models": [{"name": "one", "model": "x", "gpus": 2}]}, "gpus"),
        ({"models": [{"name": "one", "model": "x", "gpu": {"counts": 2}}]}, "counts"),
        ({"models": [{"name": "one", "model": "x", "service": {"port": 80}}]}, "service"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"probes": {"startup": {"httpGet": {"path": "/"}}}}, "httpGet"),
        ({"persistence": {"accessModes": ["ReadWriteSome"]}}, "accessModes"),
        ({"nameOverride": "My Chart"}, "nameOverride"),
        ({"commonLabels": {"app.kubernetes.io/component": "x"}}, "kubernetes.io/component"),
        ({"podLabels": {"llava-api/model": "x"}}, "llava-api/model"),
        ({"models": [{"name": "a", "model": "x", "podLabels": {"app.kubernetes.io/name": "x"}}]}, "kubernetes.io/name"),
    ],
)
def test_value_of_another_kind_is_refused(values: Object, word: str) -> None:
    with pytest.raises(HelmError, match=word):
        rendered(values)


@pytest.mark.parametrize(
    "values", [{"global": {"storageClass": "x"}}, {"enabled": True}, {"podAnnotations": {"a/b": "c"}}]
)
def test_what_is_handed_on_may_hold_anything(values: Object) -> None:
    assert rendered(values)


def sources() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in (CHART / "templates").rglob("*")
        if path.suffix in (".yaml", ".tpl", ".txt")
    )


def known(path: str, values: Object) -> bool:
    """Whether there is such a value; what is handed on as it is may have any fields."""
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def test_templates_name_no_value_that_there_is_not() -> None:
    named = set(re.findall(r"\.Values\.([A-Za-z.]+)", sources())) | set(
        re.findall(r"\$server\.([A-Za-z.]+)", sources())
    )
    unknown = [path for path in named if path.split(".")[0] not in ADDED and not known(path, VALUES)]
    # Settings are the server's; these the chart looks at.
    assert {path for path in unknown if not path.startswith("settings.")} == set()


def leaves(schema: Object, path: str = "") -> Iterator[str]:
    for name, inside in schema["properties"].items():
        fields = inside.get("additionalProperties") is False and name != "settings"
        yield from leaves(inside, f"{path}{name}.") if fields else [f"{path}{name}"]


def test_every_value_is_used() -> None:
    text = sources()
    # The claims are made by one template.
    text += "".join(text.replace("$claim.", f".{claim}.") for claim in ("persistence", "cache", "batches"))
    # Some templates take the router for a server.
    text += re.sub(r"\$(router|server)\.", ".router.", text)
    unused = [
        path
        for path in leaves(SCHEMA)
        if not re.search(rf"\.{re.escape(path)}\b", text)
        # Read by a name of their own there; global is Helm's.
        and not path.startswith(("global", "image.", "router.image.", "probes."))
    ]
    assert unused == []
