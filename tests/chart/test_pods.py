"""What every pod has: security, probes, time to end, settings that the server knows, and no secret in the open."""

import base64
import json
import re

import pytest
import yaml

from llava_api.cli.main import build_parser
from llava_api.limits.keys import PREFIX, read_key
from llava_api.settings import Settings
from tests.support.chart import ROOT, VERSIONS, Object, check, encoded, objects, of_kind, only, pods, rendered
from tests.support.chart_cases import CASES, CLAIM, HUB, JOB, MULTI_NODE, TWO_MODELS
from tests.support.endpoints import HEALTH

SECRETS = ("sk-llava-planted-key", "hf_planted_token", "redis://:planted-password@redis:6379")

every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_no_pod_may_more_than_it_needs(case: str) -> None:
    for pod in pods(objects(CASES[case])):
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        # In OpenShift, each namespace has uids of its own.
        assert pod.spec["securityContext"].get("runAsUser", -1 if case == "openshift" else 0) != 0
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for container in pod.containers:
            if container["image"] == "busybox":  # the case's own
                continue
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


def test_service_account_has_no_token_either() -> None:
    assert only(objects(), "ServiceAccount")["automountServiceAccountToken"] is False


def test_root_can_be_made_writable() -> None:
    found = objects({"securityContext": {"readOnlyRootFilesystem": False}})
    server = only(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert server["securityContext"]["readOnlyRootFilesystem"] is False
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@every_case
def test_a_server_writes_where_it_may(case: str) -> None:
    for pod in pods(objects(CASES[case])):
        if pod.labels["app.kubernetes.io/component"] not in ("server", "worker"):
            continue
        server = pod.spec["containers"][0]
        places = {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
        assert places >= {"/cache", "/tmp", "/dev/shm"}
        (shm,) = [volume for volume in pod.spec["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"


@every_case
def test_probes_ask_what_the_server_answers(case: str) -> None:
    assert {"/health/live", "/health/ready"} <= set(HEALTH)
    for pod in pods(objects(CASES[case])):
        if pod.labels["app.kubernetes.io/component"] != "server":
            continue
        server = pod.spec["containers"][0]
        ports = {port["name"] for port in server["ports"]}
        assert server["startupProbe"]["httpGet"]["path"] == "/health/ready"
        assert server["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        # Not ready is no reason to be started anew: it may be loading or draining.
        assert server["livenessProbe"]["httpGet"]["path"] == "/health/live"
        assert server["livenessProbe"]["httpGet"]["port"] == ("metrics" if "metrics" in ports else "http")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server[probe]["httpGet"]["port"] in ports


def test_a_34b_may_take_an_hour_to_load_and_is_no_failed_rollout_then() -> None:
    deployment = only(objects(CASES["two-gpus-34b"]), "Deployment")
    startup = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    loading_seconds = startup["periodSeconds"] * startup["failureThreshold"]
    assert loading_seconds >= 3600
    assert deployment["spec"]["progressDeadlineSeconds"] > loading_seconds


@every_case
def test_no_pod_is_killed_before_it_has_drained(case: str) -> None:
    running = [pod for pod in pods(objects(CASES[case])) if pod.component in ("server", "worker", "router")]
    drains = [int(pod.settings["LLAVA_DRAIN_TIMEOUT_SECONDS"]) for pod in running if pod.component != "router"]
    for pod in running:
        pause = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(pod.settings["LLAVA_DRAIN_TIMEOUT_SECONDS"])
        if pod.component == "router":
            # The answers of any server pass through it.
            assert drain == max(drains)
        if pod.component == "worker":
            # A worker whose GPUs are gone ends its leader's answers.
            assert pause == 10 + drain
            assert pod.spec["terminationGracePeriodSeconds"] > pause
        else:
            assert pod.spec["terminationGracePeriodSeconds"] > pause + drain


def settings_of(values: Object) -> dict[str, str]:
    """The environment of the (first) server."""
    (first, *_) = [pod for pod in pods(objects(values)) if pod.component == "server"]
    return first.settings


@every_case
def test_settings_are_the_servers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"LLAVA_{name.upper()}" for name in Settings.model_fields}
    for pod in pods(objects(CASES[case])):
        if pod.component not in ("server", "worker"):
            continue
        with monkeypatch.context() as patch:
            for name, value in pod.settings.items():
                patch.setenv(name, value)
            read = Settings()
        assert read.port == 8000
        assert read.cache_dir.startswith("/cache/")
    for pod in pods(objects(CASES[case])):
        for container in pod.containers:
            named = {variable["name"] for variable in container.get("env", [])}
            assert {name for name in named if name.startswith("LLAVA_")} <= known


def test_settings_arrive_as_they_were_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "servedModelNames": ["a", "b"],
        "settings": {
            "max_body_bytes": 250_000_000,
            "gpu_memory_utilization": 0.95,
            "fetch_images": False,
            "lora": ["x=/data/x", "y=/data/y"],
            "allowed_media_ports": [443, 8443],
            "engine_arg": ['limit_mm_per_prompt={"image": 4, "video": 0}'],
            # Kubernetes puts a variable's value in the place of $(NAME) unless it is escaped.
            "model_base": "/data/$(HOME)/vicuna-7b-v1.5",
        },
        **CLAIM,
    }
    for name, value in settings_of(values).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.served_model_name == ["a", "b"]
    for name, value in values["settings"].items():
        assert getattr(read, name) == value


@every_case
def test_a_server_is_started_as_its_image_takes_it(case: str) -> None:
    """``args`` stand where the image's CMD would: the command line goes through the server's own parser."""
    entry, command = (json.loads(one) for one in image_lines("ENTRYPOINT", "CMD"))
    assert (entry, command) == (["tini", "--", "llava-api"], ["serve"])
    for pod in pods(objects(CASES[case])):
        server = pod.spec["containers"][0]
        if pod.labels["app.kubernetes.io/component"] == "server" and "args" in server:
            chosen = build_parser().parse_args(server["args"])
            assert chosen.command == "serve"
            assert chosen.model == server["args"][-1]


def image_lines(*names: str) -> list[str]:
    """What the Dockerfile's two images say; both the same."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = [set(re.findall(rf"(?m)^{name} (.*)$", text)) for name in names]
    assert [len(one) for one in found] == [1] * len(names)
    return [one.pop() for one in found]


def test_gpus_share_layers_and_nodes_share_the_rest() -> None:
    assert settings_of({"gpu": {"count": 2}})["LLAVA_TENSOR_PARALLEL_SIZE"] == "2"
    both = settings_of(MULTI_NODE)
    assert (both["LLAVA_TENSOR_PARALLEL_SIZE"], both["LLAVA_PIPELINE_PARALLEL_SIZE"]) == ("4", "2")
    assert both["LLAVA_DISTRIBUTED_EXECUTOR_BACKEND"] == "ray"
    chosen = settings_of({"gpu": {"count": 2}, "settings": {"data_parallel_size": 2}})
    assert chosen["LLAVA_DATA_PARALLEL_SIZE"] == "2"
    assert "LLAVA_TENSOR_PARALLEL_SIZE" not in chosen


def test_gpus_are_limits_of_their_resource() -> None:
    server = only(objects({"gpu": {"count": 2, "resource": "nvidia.com/mig-3g.40gb"}}), "Deployment")
    spec = server["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 2
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    without = only(objects(), "Deployment")["spec"]["template"]["spec"]
    assert without["containers"][0]["resources"]["limits"].keys() == {"memory"}
    assert "tolerations" not in without


def test_the_test_runs_where_a_server_does_and_the_router_where_it_is_told() -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    place = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "cpu"}], "affinity": {"nodeAffinity": {}}}
    values = {**TWO_MODELS, "gpu": {"count": 1}, "nodeSelector": {"pool": "gpu"}, "router": place}
    specs = {pod.labels["app.kubernetes.io/component"]: pod.spec for pod in pods(objects(values))}
    assert specs["test"]["tolerations"] == specs["server"]["tolerations"] == [taint]
    assert (
        specs["test"]["nodeSelector"]
        == specs["server"]["nodeSelector"]
        == {"pool": "gpu", "kubernetes.io/arch": "amd64"}
    )
    place["nodeSelector"] = {"pool": "cpu", "kubernetes.io/arch": "amd64"}
    assert {name: specs["router"][name] for name in place} == place


def test_values_that_are_taken_away_are_gone() -> None:
    values = {"gpu": {"count": 1, "tolerations": None}, "resources": None}
    spec = only(objects(values), "Deployment")["spec"]["template"]["spec"]
    assert "tolerations" not in spec
    assert spec["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_image_follows_the_device() -> None:
    def image(values: Object) -> str:
        return only(objects(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]

    assert image({}).endswith("-cpu")
    assert not image({"gpu": {"count": 1}}).endswith("-cpu")
    assert image({"image": {"tag": "edge"}}).endswith(":edge")
    digest = f"sha256:{'0' * 64}"
    assert image({"image": {"tag": "edge", "digest": digest}}).endswith(f"llava-api@{digest}")


def test_images_are_pushed_under_the_tags_that_the_chart_asks_for() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "image.yaml").read_text(encoding="utf-8"))
    (tags,) = [step["with"] for step in workflow["jobs"]["build"]["steps"] if step.get("id") == "metadata"]
    # {{version}}: the tag without its v.
    assert tags["tags"] == "type=semver,pattern={{version}}"
    assert "suffix=${{ matrix.target == 'cpu' && '-cpu' || '' }}" in tags["flavor"]


def test_changed_settings_start_the_pods_anew_and_changed_keys_do_not() -> None:
    def template(values: Object) -> Object:
        return only(objects(values), "Deployment")["spec"]["template"]

    before = template({})
    assert template({"settings": {"max_model_len": 1024}}) != before
    assert template({"apiKeys": {"values": {"anne": "sk-llava-0123456789"}}}) == before


@every_case
def test_an_upgrade_changes_nothing_in_pods_that_run_already(case: str) -> None:
    """A pod of the release before that restarts meanwhile must come back with the settings of its own release."""
    found = objects(CASES[case])
    for pod in pods(found):
        for container in pod.containers:
            assert "envFrom" not in container
            assert not any("configMapKeyRef" in one.get("valueFrom", {}) for one in container.get("env", []))
        # The limits are read again while the server runs: they are meant to change under the pods.
        maps = {one["configMap"]["name"] for one in pod.spec.get("volumes", []) if "configMap" in one}
        assert maps & {one["metadata"]["name"] for one in found} <= {"llava-llava-api-limits"}


def test_a_variable_of_your_own_takes_precedence_and_is_there_once() -> None:
    server = only(objects({"env": [{"name": "LLAVA_LOG_FORMAT", "value": "human"}]}), "Deployment")
    variables = server["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [one["value"] for one in variables if one["name"] == "LLAVA_LOG_FORMAT"] == ["human"]


def test_other_fields_of_a_pod_are_passed_on_to_the_servers() -> None:
    claim = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}
    values = {
        "podSpec": {"resourceClaims": [claim], "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["hub.internal"]}]},
        "gpu": {"count": 1},
    }
    found = objects({**JOB, **values})
    check(only(found, "Deployment"), VERSIONS[-1])
    specs = {pod.component: pod.spec for pod in pods(found)}
    assert specs["server"]["resourceClaims"] == [claim]
    assert specs["server"]["hostAliases"][0]["hostnames"] == ["hub.internal"]
    resources = specs["server"]["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "gpu"}]
    # One GPU and not two: the claim's.
    assert resources["limits"].keys() == {"memory"}
    # A GPU that the download claims is one that a server waits for.
    assert "resourceClaims" not in specs["download"]


def test_a_queue_and_a_priority_hold_for_the_download_too() -> None:
    queue = {"kueue.x-k8s.io/queue-name": "inference"}
    found = objects({**JOB, "workloadLabels": queue, "priorityClassName": "high", "schedulerName": "volcano"})
    for kind in ("Deployment", "Job"):
        one = only(found, kind)
        assert queue.items() <= one["metadata"]["labels"].items()
        spec = one["spec"]["template"]["spec"]
        assert (spec["priorityClassName"], spec["schedulerName"]) == ("high", "volcano")


@pytest.mark.parametrize("more", [{}, TWO_MODELS, {"model": HUB, "download": {"mode": "job"}, **CLAIM}, MULTI_NODE])
def test_secrets_stand_in_secrets_alone(more: Object) -> None:
    key, token, url = SECRETS
    values = {"apiKeys": {"values": {"anne": key}}, "hub": {"token": token}, "redis": {"url": url}, **more}
    seen = set()
    for one in objects(values):
        text = json.dumps(one)
        for secret in SECRETS:
            if secret in text or encoded(secret) in text:
                assert one["kind"] == "Secret"
                seen.add(secret)
    assert seen == set(SECRETS)
    assert not any(
        secret in text for path, text in rendered(values).items() if "secret" not in path for secret in SECRETS
    )


@pytest.mark.parametrize("name", ["on", "007", "1e3", "null"])
def test_a_keys_name_stays_as_it_was_given(name: str) -> None:
    values = {"apiKeys": {"values": {name: SECRETS[0]}}, "hub": {"token": SECRETS[1], "secretKey": name}}
    assert [list(one["data"]) for one in of_kind(objects(values), "Secret")] == [[name], [name]]
    named = [one for pod in pods(objects(values)) for one in pod.spec["containers"][0]["env"] if "valueFrom" in one]
    assert [one["valueFrom"]["secretKeyRef"]["key"] for one in named] == [name]


def test_made_key_is_one_that_the_server_takes_and_another_for_each_release() -> None:
    def made(release: str) -> str:
        return base64.b64decode(only(objects(name=release), "Secret")["data"]["default"]).decode()

    assert made("one") != made("two")
    assert made("one").startswith(PREFIX)
    assert "default" in read_key("default", made("one"), "the chart")


def test_without_keys_the_entrances_names_are_known() -> None:
    values = {"apiKeys": {"enabled": False}, "ingress": {"enabled": True, "hosts": ["a.example.com", "b.example.com"]}}
    found = settings_of(values)
    assert found["LLAVA_ALLOWED_HOSTS"] == "a.example.com,b.example.com"
    assert found["LLAVA_ALLOW_ANONYMOUS"] == "true"
    assert "LLAVA_API_KEY_DIR" not in found
    with_keys = settings_of({})
    assert with_keys["LLAVA_API_KEY_DIR"]
    assert "LLAVA_ALLOW_ANONYMOUS" not in with_keys
