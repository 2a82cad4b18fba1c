"""Where weights and caches are, which image a model gets, and what a container without a GPU sees of them."""

import re

import pytest
from helm_python.errors import HelmError

from tests.support.chart import EXAMPLES, ROOT, Object, example, objects, of_kind, only, pods, rendered
from tests.support.chart_cases import CASES, CLAIM, HUB, JOB, TWO_MODELS

every_case = pytest.mark.parametrize("case", CASES)


def settings_of(found: list[Object]) -> dict[str, str]:
    """The environment of the (first) server."""
    (first, *_) = [pod for pod in pods(found) if pod.component == "server"]
    return first.settings


def server_of(values: Object) -> Object:
    return only(objects(values), "Deployment")["spec"]["template"]["spec"]


def mounts(container: Object) -> dict[str, Object]:
    return {one["mountPath"]: one for one in container["volumeMounts"]}


@every_case
def test_whatever_is_written_goes_beside_the_weights(case: str) -> None:
    """Every folder that the image's variables put below /data is in /cache, except the hub's downloads."""
    image = set(re.findall(r"\b([A-Z_]+)=/data", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    found = objects(CASES[case])
    for settings in (pod.settings for pod in pods(found) if pod.component in ("server", "worker")):
        below_data = {name for name in settings if settings[name].startswith("/data")}
        assert below_data == {"HF_HUB_CACHE"}
        assert image <= settings.keys()
        assert {settings[name].split("/")[1] for name in image} == {"cache", "tmp"}
    for pod in pods(found):
        if pod.labels["app.kubernetes.io/component"] in ("server", "worker"):
            server = pod.spec["containers"][0]
            assert mounts(server)["/cache"]["name"] == "cache"
            assert not mounts(server)["/cache"].get("readOnly")


@pytest.mark.parametrize(
    ("values", "read_only"),
    [
        ({}, False),
        (CLAIM, False),
        ({"model": HUB, "download": {"mode": "initContainer"}}, False),
        (JOB, True),
        ({"hub": {"offline": True}}, True),
        ({"persistence": {"enabled": True, "existingClaim": "w", "readOnly": True}}, True),
        ({"persistence": {"enabled": True, "existingClaim": "w", "accessModes": ["ReadOnlyMany"]}}, True),
        ({"persistence": {"enabled": True, "accessModes": ["ReadOnlyMany", "ReadWriteMany"]}}, False),
        (example("image-volume"), True),
    ],
)
def test_weights_that_are_there_are_mounted_read_only_and_the_hub_is_not_asked(values: Object, read_only: bool) -> None:
    values = {**values, "hub": {"token": "hf_0123456789", **values.get("hub", {})}}
    server = server_of(values)["containers"][0]
    assert mounts(server)["/data"].get("readOnly", False) == read_only
    assert ("HF_TOKEN" not in {one["name"] for one in server["env"]}) == read_only
    assert ("HF_HUB_OFFLINE" in settings_of(objects(values))) == read_only


def test_a_read_only_claim_is_attached_read_only() -> None:
    """Or a disk that several nodes may only read is attached to one of them for writing."""
    (data,) = [one for one in server_of(example("read-only-claim"))["volumes"] if one["name"] == "data"]
    assert data["persistentVolumeClaim"] == {"claimName": "llava-weights", "readOnly": True}
    # The Job of a shared claim writes to it.
    job = only(objects(JOB), "Job")["spec"]["template"]["spec"]
    (data,) = [one for one in job["volumes"] if one["name"] == "data"]
    assert "readOnly" not in data["persistentVolumeClaim"]


def test_caches_may_have_a_claim_of_their_own() -> None:
    values = {"cache": {"enabled": True, "size": "9Gi"}, "prometheusRule": {"enabled": True}}
    (claim,) = of_kind(objects(values), "PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "llava-llava-api-cache"
    assert claim["spec"]["resources"]["requests"]["storage"] == "9Gi"
    (cache,) = [one for one in server_of(values)["volumes"] if one["name"] == "cache"]
    assert cache["persistentVolumeClaim"]["claimName"] == "llava-llava-api-cache"
    assert 'persistentvolumeclaim=~"llava-llava-api-cache"' in rendered(values)["templates/prometheusrule.yaml"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_name_no_folder_that_nothing_fills(name: str) -> None:
    """A model or an adapter in /data is in a volume that somebody fills, never in a new claim or an emptyDir."""
    values = example(name)
    for model in values.get("models", [values]):
        merged = {**values, **model}
        lora = merged.get("settings", {}).get("lora", [])
        folders = [
            source
            for source in (merged.get("model", ""), *(one.partition("=")[2] for one in lora))
            if source.startswith("/")
        ]
        persistence = merged.get("persistence", {})
        filled = {"existingClaim", "volume"} & persistence.keys() or merged.get("download", {}).get("command")
        assert not folders or filled, folders


@pytest.mark.parametrize("name", EXAMPLES)
def test_volumes_are_those_that_pod_securitys_restricted_profile_allows(name: str) -> None:
    """pod-security-admission's check_restrictedVolumes.go, as of Kubernetes 1.33."""
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image"}
    allowed |= {"persistentVolumeClaim", "projected", "secret"}
    for pod in pods(objects(example(name))):
        for volume in pod.spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed


def image_of(values: Object) -> str:
    return server_of(values)["containers"][0]["image"]


def test_other_devices_need_an_image_of_their_own() -> None:
    amd: Object = {"gpu": {"count": 1, "resource": "amd.com/gpu"}}
    with pytest.raises(HelmError, match=r"for NVIDIA's GPUs, and gpu.resource is amd.com/gpu"):
        rendered(amd)
    with pytest.raises(HelmError, match=r"gpu.resource is gpu.intel.com/xe"):
        rendered({"gpu": {"count": 1, "resource": "gpu.intel.com/xe"}, "image": {"repository": "mirror/llava-api"}})
    values = {**amd, "image": {"repository": "registry.example.com/llava-rocm", "tag": "1"}}
    assert image_of(values) == "registry.example.com/llava-rocm:1"
    assert [one["key"] for one in server_of(values)["tolerations"]] == ["amd.com/gpu"]


def test_a_model_on_the_cpu_never_gets_the_image_of_one_on_gpus() -> None:
    models = [{"name": "a", "model": "x", "gpu": {"count": 1}}, {"name": "b", "model": "y"}]
    found = of_kind(objects({"models": models}), "Deployment")
    images = [one["spec"]["template"]["spec"]["containers"][0]["image"] for one in found]
    assert [image.endswith("-cpu") for image in images[:2]] == [False, True]
    with pytest.raises(HelmError, match=r"models, b: the image .*:edge is another model's too"):
        rendered({"models": models, "image": {"tag": "edge"}})
    models[1] |= {"image": {"tag": "edge-cpu"}}
    assert rendered({"models": models, "image": {"tag": "edge"}})


def test_pods_run_where_their_image_can() -> None:
    assert server_of({})["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert server_of({"nodeSelector": {"pool": "a"}})["nodeSelector"] == {"kubernetes.io/arch": "amd64", "pool": "a"}
    arm = {"image": {"tag": "arm"}, "nodeSelector": {"kubernetes.io/arch": "arm64"}}
    assert server_of(arm)["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert "nodeSelector" not in server_of({"image": {"tag": "mine"}})
    assert all(pod.spec["nodeSelector"]["kubernetes.io/arch"] == "amd64" for pod in pods(objects(JOB)))


@every_case
def test_a_container_without_gpus_does_not_see_the_nodes(case: str) -> None:
    """The CUDA image's base says NVIDIA_VISIBLE_DEVICES=all."""
    for pod in pods(objects(CASES[case])):
        for container in pod.containers:
            if not re.search(r"llava-api(-ray)?(:[^-]+|@.*)$", container["image"]):
                continue
            wants = any(name.endswith(("/gpu", "/mig-3g.40gb")) for name in container["resources"].get("limits", {}))
            wants = wants or "claims" in container["resources"]
            void = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container.get("env", [])
            assert void != wants, container["name"]


def test_files_and_batches_have_one_pod_with_a_claim_of_its_own() -> None:
    found = objects({"batches": {"enabled": True, "size": "200Gi"}, "replicas": 1})
    deployment = only(found, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    # The next pod could not have the claim and the folder's lock before this one has ended.
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    claim = only(found, "PersistentVolumeClaim")
    assert claim["spec"]["resources"]["requests"]["storage"] == "200Gi"
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    pod = deployment["spec"]["template"]["spec"]
    folder = settings_of(found)["LLAVA_DATA_DIR"]
    volume = mounts(pod["containers"][0])[folder]["name"]
    assert {"name": volume, "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]


def test_only_the_model_with_batches_has_their_claim() -> None:
    one, two = TWO_MODELS["models"]
    values = {"models": [one | {"batches": {"enabled": True, "existingClaim": "files"}}, two | {"replicas": 2}]}
    servers = [pod for pod in pods(objects(values)) if pod.component == "server"]
    assert [pod.settings.get("LLAVA_DATA_DIR") for pod in servers] == ["/files", None]
    claims = [volume.get("persistentVolumeClaim") for pod in servers for volume in pod.spec["volumes"]]
    assert [claim for claim in claims if claim] == [{"claimName": "files"}]
