"""How weights get into the volume. The containers' commands are run here, against a hub on this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llava_api.checkpoints.adapters import locate_adapter
from tests.chart.test_weights import mounts, server_of, settings_of
from tests.support.chart import Object, example, objects, of_kind, only, pods, rendered
from tests.support.chart_cases import HUB, JOB
from tests.support.hub import hub


def job_of(values: Object) -> Object:
    return only(objects(values), "Job")["spec"]["template"]["spec"]


def variables(container: Object) -> dict[str, str | None]:
    names = [one["name"] for one in container["env"]]
    assert len(names) == len(set(names))
    return {one["name"]: one.get("value") for one in container["env"]}


@pytest.fixture
def repositories(tmp_path: Path) -> dict[str, Path]:
    """A model, with more files than are wanted, and an adapter."""
    files = {
        HUB: {"config.json": "{}", "model.safetensors": "weights"},
        "org/birds": {"adapter_config.json": "{}", "adapter_model.safetensors": "x", "optimizer.pt": "y"},
    }
    for repository, contents in files.items():
        for name, text in contents.items():
            (tmp_path / "hub" / repository).mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / repository / name).write_text(text)
    return {repository: tmp_path / "hub" / repository for repository in files}


def run_at(folder: Path, container: Object, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A container's command, with ``folder`` in the place of the root and without tini, which forwards signals."""
    command = [part.replace("/data", f"{folder}/data") for part in container["command"] if part not in ("tini", "--")]
    given = {
        name: (value or "secret").replace("/data", f"{folder}/data") for name, value in variables(container).items()
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**given, "HOME": str(folder), "HF_HOME": str(folder / "home"), "PATH": path, **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("mode", ["job", "initContainer"])
def test_model_and_adapters_are_fetched_to_where_the_server_looks(
    mode: str, tmp_path: Path, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**JOB, "download": {"mode": mode}, "settings": {"lora": ["birds=org/birds"]}}
    found = objects(values)
    spec = job_of(values) if mode == "job" else server_of(values)
    fetching = [one for one in spec["initContainers"] if one["name"].startswith("fetch")]
    with hub(repositories) as served:
        for container in fetching:
            done = run_at(tmp_path, container, {"HF_ENDPOINT": served.address, "HF_HUB_OFFLINE": "0"})
            assert done.returncode == 0, done.stderr
    wanted = {f"{HUB}/config.json", f"{HUB}/model.safetensors"}
    assert set(served.fetched) == wanted | {"org/birds/adapter_config.json", "org/birds/adapter_model.safetensors"}
    cache = settings_of(found)["HF_HUB_CACHE"].replace("/data", f"{tmp_path}/data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (locate_adapter("org/birds", cache) / "adapter_model.safetensors").read_text() == "x"


def test_only_the_files_that_are_wanted_are_fetched_and_of_the_revision(
    tmp_path: Path, repositories: dict[str, Path]
) -> None:
    values = {**JOB, "revision": "abc", "download": {"mode": "job", "include": ["*.json"]}}
    (container,) = [one for one in job_of(values)["initContainers"] if one["name"].startswith("fetch")]
    with hub(repositories) as served:
        done = run_at(tmp_path, container, {"HF_ENDPOINT": served.address, "HF_HUB_OFFLINE": "0"})
    assert done.returncode == 0, done.stderr
    assert set(served.fetched) == {f"{HUB}/config.json"}
    assert [path.name for path in tmp_path.rglob("refs/*")] == ["abc"]


def test_the_server_waits_for_the_file_that_the_job_makes_last(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    wait = server_of(JOB)["initContainers"][0]
    (mark,) = job_of(JOB)["containers"]
    assert run_at(tmp_path, mark, {}).returncode == 0
    assert "are there" in run_at(tmp_path, wait, {}).stdout


def test_waiting_says_each_minute_what_for_and_ends(tmp_path: Path) -> None:
    (tmp_path / "sleep").write_text('#!/bin/sh\necho "$1" >> "$0.log"\n')
    (tmp_path / "sleep").chmod(0o755)
    values = {**JOB, "download": {"mode": "job", "deadlineSeconds": 150}}
    wait = server_of(values)["initContainers"][0]
    # Kubernetes would put a variable's value in its place, before the shell is asked.
    assert not any("$(" in part for part in wait["command"])
    done = run_at(tmp_path, wait, {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1
    assert [line.split(" (")[1].split(" of")[0] for line in done.stdout.splitlines()] == ["0", "60", "120"]
    assert HUB in done.stderr
    assert "component=download,llava-api/model=main" in done.stderr
    assert sum(int(one) for one in (tmp_path / "sleep.log").read_text().split()) == 150


def test_a_failed_download_ends_and_keeps_its_logs() -> None:
    job = only(objects({**JOB, "download": {"mode": "job", "deadlineSeconds": 150}}), "Job")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["activeDeadlineSeconds"] == 150


FAILED = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({}, "weights"),
        ({"status": {"active": 1}}, "weights"),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}, "weights"),
        ({"status": {"conditions": [{"type": "Failed", "status": "False"}]}}, "weights"),
        (FAILED, "weights-r7"),
    ],
)
def test_a_job_that_failed_has_a_successor_of_another_name(found: Object, name: str) -> None:
    """The template that names it, with what a cluster's look-up would find."""
    text = f'kind: X\nname: {{{{ include "llava-api.jobName" (list "weights" (`{json.dumps(found)}` | fromJson) 7) }}}}'
    files = rendered({"extraManifests": [text]})
    assert yaml.safe_load(files["templates/extra-manifests.yaml"])["name"] == name


def test_a_failed_job_is_an_alert_of_its_own() -> None:
    (job,) = of_kind(objects({**JOB, "prometheusRule": {"enabled": True}}), "Job")
    rule = only(objects({**JOB, "prometheusRule": {"enabled": True}}), "PrometheusRule")
    (group,) = [one for one in rule["spec"]["groups"] if one["name"].endswith("-weights")]
    (alert,) = group["rules"]
    assert alert["alert"] == "LlavaApiDownloadFailed"
    (pattern,) = re.findall(r'kube_job_failed\{namespace="ai",job_name=~"([^"]+)",condition="true"\}', alert["expr"])
    name = job["metadata"]["name"]
    assert re.fullmatch(pattern, name)
    assert re.fullmatch(pattern, f"{name}-r7")
    assert not re.fullmatch(pattern, "llava-llava-api-another-0123456789")
    before = {"model": HUB, "download": {"mode": "initContainer"}, "prometheusRule": {"enabled": True}}
    (failing,) = only(objects(before), "PrometheusRule")["spec"]["groups"][-1]["rules"]
    names = [one["name"] for one in server_of(before)["initContainers"]]
    (pattern,) = re.findall(r'container=~"([^"]+)"', failing["expr"])
    assert all(re.fullmatch(pattern, name) for name in names)
    without = only(objects({"prometheusRule": {"enabled": True}}), "PrometheusRule")
    assert len(without["spec"]["groups"]) == len(rule["spec"]["groups"]) - 1


def test_a_download_has_the_proxies_certificates_and_settings_that_it_is_given() -> None:
    values = {
        **JOB,
        "env": [
            {"name": "https_proxy", "value": "http://proxy:3128"},
            {"name": "HF_HUB_DISABLE_XET", "value": "0"},
            {"name": "NCCL_DEBUG", "value": "WARN"},
        ],
        "download": {
            "mode": "job",
            "env": [{"name": "HF_HUB_DISABLE_XET", "value": "1"}, {"name": "SSL_CERT_FILE", "value": "/etc/ca/ca.crt"}],
            "volumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
            "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
            "podLabels": {"kueue.x-k8s.io/queue-name": "downloads"},
            "podAnnotations": {"sidecar.istio.io/inject": "false"},
        },
    }
    template = only(objects(values), "Job")["spec"]["template"]
    (fetch,) = template["spec"]["initContainers"]
    given = variables(fetch)
    assert given["https_proxy"] == "http://proxy:3128"
    assert given["HF_HUB_DISABLE_XET"] == "1"
    assert given["SSL_CERT_FILE"] == "/etc/ca/ca.crt"
    assert "NCCL_DEBUG" not in given
    assert mounts(fetch)["/etc/ca"]["name"] == "ca"
    assert "ca" in {volume["name"] for volume in template["spec"]["volumes"]}
    assert template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "downloads"
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    before = server_of({**values, "download": {**values["download"], "mode": "initContainer"}})
    assert variables(before["initContainers"][0])["SSL_CERT_FILE"] == "/etc/ca/ca.crt"
    assert "ca" in {volume["name"] for volume in before["volumes"]}


def test_a_command_can_fill_the_volume_instead_of_the_hub(tmp_path: Path) -> None:
    values = example("from-s3")
    (fetch,) = server_of(values)["initContainers"]
    assert fetch["image"] == values["download"]["image"]
    assert fetch["command"] == values["download"]["command"]
    assert variables(fetch)["AWS_REGION"] == "eu-central-1"
    other = {**JOB, "model": "/data/m", "download": {"mode": "job", "command": ["cp", "-r", "/src", "/data/m"]}}
    assert job_of(other)["initContainers"][0]["command"] == ["cp", "-r", "/src", "/data/m"]
    changed = {**other, "download": {"mode": "job", "command": ["cp", "-r", "/new", "/data/m"]}}
    assert job_of(other)["containers"][0]["command"] != job_of(changed)["containers"][0]["command"]


def test_only_the_download_knows_the_hubs_token() -> None:
    found = objects({**JOB, "hub": {"token": "hf_0123456789"}})
    for pod in pods(found):
        named = {one["name"] for container in pod.containers for one in container.get("env", [])}
        assert ("HF_TOKEN" in named) == (pod.owner["kind"] == "Job")
    assert settings_of(objects(JOB))["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "more",
    [
        {"revision": "abc"},
        {"model": "llava-hf/llava-1.5-13b-hf"},
        {"image": {"tag": "0.2.0"}},
        {"download": {"mode": "job", "resources": {"limits": {"memory": "8Gi"}}}},
        {"hub": {"existingSecret": "hub"}},
        {"commonLabels": {"team": "vision"}},
        {"gpu": {"count": 1}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_jobs_of_one_name_have_the_same_pods(more: Object) -> None:
    """Kubernetes refuses other pods for a Job that it has, and with it the whole upgrade."""
    before, after = only(objects(JOB), "Job"), only(objects({**JOB, **more}), "Job")
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_a_job_stays_where_its_pods_do() -> None:
    names = {
        only(objects(JOB | more), "Job")["metadata"]["name"]
        for more in ({}, {"replicas": 3}, {"settings": {"seed": 1}})
    }
    assert len(names) == 1


def test_weights_that_were_fetched_need_no_second_job() -> None:
    """Another image is another Job; pods that start meanwhile find the mark of the first one."""

    def mark(values: Object) -> str:
        return only(objects(values), "Deployment")["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]

    assert mark(JOB) == mark({**JOB, "image": {"tag": "0.2.0"}})
    assert mark(JOB) != mark({**JOB, "revision": "abc"})
