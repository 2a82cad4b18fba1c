"""What every pod has: security, probes, time to end, settings that the server knows, and no secret in the open."""

import base64
import json
import re

import pytest
import yaml

from llava_api.cli.main import build_parser
from llava_api.images.guard import NOT_PUBLIC_4, NOT_PUBLIC_6
from llava_api.limits.keys import PREFIX, read_key
from llava_api.settings import Settings
from tests.support.chart import ROOT, Object, encoded, objects, of_kind, only, pods, rendered
from tests.support.chart_cases import CASES, CLAIM, HUB, MULTI_NODE, TWO_MODELS
from tests.support.endpoints import HEALTH

SECRETS = ("sk-llava-planted-key", "hf_planted_token", "redis://:planted-password@redis:6379")

every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_no_pod_may_more_than_it_needs(case: str) -> None:
    for pod in pods(objects(CASES[case])):
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        assert pod.spec["securityContext"]["runAsUser"] > 0
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
    found = objects(CASES[case])
    drains = {
        one["metadata"]["name"]: int(one["data"]["LLAVA_DRAIN_TIMEOUT_SECONDS"])
        for one in of_kind(found, "ConfigMap")
        if "LLAVA_HOST" in one["data"]
    }
    for pod in pods(found):
        component = pod.labels["app.kubernetes.io/component"]
        if component not in ("server", "worker", "router"):
            continue
        container = pod.spec["containers"][0]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        sources = [source["configMapRef"]["name"] for source in container.get("envFrom", [])]
        # The router lives as long as the answers of whichever server.
        drain = drains[sources[0]] if sources else max(drains.values())
        if component == "worker":
            # A worker whose GPUs are gone ends its leader's answers.
            assert pause == 10 + drain
            assert pod.spec["terminationGracePeriodSeconds"] > pause
        else:
            assert pod.spec["terminationGracePeriodSeconds"] > pause + drain


def settings_of(values: Object) -> dict[str, str]:
    """The environment of the (first) server."""
    found = of_kind(objects(values), "ConfigMap")
    (first, *_) = [one for one in found if "LLAVA_HOST" in one["data"]]
    return first["data"]


@every_case
def test_settings_are_the_servers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"LLAVA_{name.upper()}" for name in Settings.model_fields}
    for one in objects(CASES[case]):
        if one["kind"] != "ConfigMap" or "LLAVA_HOST" not in one["data"]:
            continue
        variables = one["data"]
        assert {name for name in variables if name.startswith("LLAVA_")} <= known
        with monkeypatch.context() as patch:
            for name, value in variables.items():
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
            "model_base": "lmsys/vicuna-7b-v1.5",
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
    assert specs["test"]["nodeSelector"] == specs["server"]["nodeSelector"] == {"pool": "gpu"}
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
    def checksum(values: Object) -> str:
        return only(objects(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    before = checksum({})
    assert checksum({"settings": {"max_model_len": 1024}}) != before
    assert checksum({"apiKeys": {"values": {"anne": "sk-llava-0123456789"}}}) == before


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


def test_network_policy_closes_what_the_guard_closes() -> None:
    policy = only(objects(), "NetworkPolicy")["spec"]
    (out,) = [rule for rule in policy["egress"] if "to" in rule]
    blocks = {peer["ipBlock"]["cidr"]: set(peer["ipBlock"]["except"]) for peer in out["to"]}
    assert blocks == {"0.0.0.0/0": {str(one) for one in NOT_PUBLIC_4}, "2000::/3": {str(one) for one in NOT_PUBLIC_6}}
    assert {port["port"] for port in out["ports"]} == {80, 443}
    assert policy["ingress"][0] == {"ports": [{"port": 8000, "protocol": "TCP"}]}


def test_network_policy_can_close_the_way_out() -> None:
    policy = only(objects({"networkPolicy": {"ports": []}}), "NetworkPolicy")["spec"]
    (names,) = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}


def test_without_keys_the_entrances_names_are_known() -> None:
    values = {"apiKeys": {"enabled": False}, "ingress": {"enabled": True, "host": "llava.example.com"}}
    found = settings_of(values)
    assert found["LLAVA_ALLOWED_HOSTS"] == "llava.example.com"
    assert found["LLAVA_ALLOW_ANONYMOUS"] == "true"
    assert "LLAVA_API_KEY_DIR" not in found
    with_keys = settings_of({})
    assert with_keys["LLAVA_API_KEY_DIR"]
    assert "LLAVA_ALLOW_ANONYMOUS" not in with_keys
