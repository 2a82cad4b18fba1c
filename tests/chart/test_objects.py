"""What is rendered is valid, and every name in it is that of something that is there."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from jsonschema import ValidationError

from tests.support.chart import ROOT, VERSIONS, Object, check, objects, of_kind, only, pods, selects
from tests.support.chart_cases import CASES, MULTI_NODE, SCALING, SWITCHES, TWO_MODELS

LONG = "a-release-with-the-longest-name-that-helm-will-accept"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
RUNBOOKS = "https://github.com/llava-api/llava-api/blob/main/docs/operations.md"
DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
ELSEWHERE = {"llava-keys", "hub-token", "llava-redis", "llava-weights", "keys", "hub", "weights", "llava-epp"}
ELSEWHERE |= {"company-ca", "router-key", "files"}
"""Secrets, claims, ConfigMaps and Services that a case says are made by somebody else."""
NEEDED = {"image-volume": "1.31", "dra": "1.34"}
"""The first version of Kubernetes that knows what the case asks for."""

every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(case: str, version: str) -> None:
    for one in objects(CASES[case]):
        if version < NEEDED.get(case, version):
            continue
        try:
            check(one, version)
        except ValidationError as error:
            pytest.fail(f"{one['kind']} {one['metadata']['name']}: {error.json_path}: {error.message}")


def test_checks_see_a_misspelt_field() -> None:
    for kind, values in {
        "Deployment": {},
        "LeaderWorkerSet": MULTI_NODE,
        "ScaledObject": {"keda": {"enabled": True}},
        "HTTPRoute": CASES["route"],
    }.items():
        (one,) = of_kind(objects(values), kind)
        one["spec"]["replicaz"] = 1
        with pytest.raises(ValidationError, match="replicaz"):
            check(one, VERSIONS[0])
    (group,) = of_kind(objects(MULTI_NODE), "LeaderWorkerSet")
    group["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containerz"] = []
    with pytest.raises(ValidationError, match="containerz"):
        check(group, VERSIONS[0])


@pytest.mark.parametrize("switch", SWITCHES)
def test_switch_adds_and_takes_what_it_says(switch: str) -> None:
    values, expected = SWITCHES[switch]
    before = Counter(one["kind"] for one in objects())
    after = Counter(one["kind"] for one in objects(values))
    changed = set((after - before).keys()) | {f"-{kind}" for kind in (before - after)}
    assert changed == expected


@every_case
@pytest.mark.parametrize("release", ["llava", LONG], ids=["short", "long"])
def test_names_and_labels_fit(case: str, release: str) -> None:
    found = objects(CASES[case], name=release)
    names = Counter((one["kind"], one["metadata"]["name"]) for one in found)
    assert [name for name, times in names.items() if times > 1] == []
    for one in found:
        assert len(one["metadata"]["name"]) <= 63
        assert DNS.fullmatch(one["metadata"]["name"])
        if one["kind"] == "Deployment":
            # -REPLICASET-POD: what is longer is cut, and the queries of alerts would not find it.
            assert len(one["metadata"]["name"]) + 11 <= 58
    for labels in (*(one["metadata"].get("labels", {}) for one in found), *(pod.labels for pod in pods(found))):
        for value in labels.values():
            assert isinstance(value, str)
            assert len(value) <= 63
            assert LABEL.fullmatch(value)


@every_case
def test_no_two_objects_make_a_service_of_the_same_name(case: str) -> None:
    """A LeaderWorkerSet's controller makes a Service of its name unless there is one, which would hide the nodes."""
    makers = Counter(one["metadata"]["name"] for one in of_kind(objects(CASES[case]), "Service", "LeaderWorkerSet"))
    assert [name for name, times in makers.items() if times > 1] == []


def test_names_of_groups_leave_room_for_their_pods() -> None:
    """NAME-0 is the name of a StatefulSet, which may have 52 letters: a hash of eleven follows in a label."""
    one = only(objects(MULTI_NODE, name=LONG), "LeaderWorkerSet")
    assert len(f"{one['metadata']['name']}-1000") <= 52


def test_a_releases_dots_stand_in_no_name() -> None:
    for one in objects(TWO_MODELS, name="llava.v1"):
        assert DNS.fullmatch(one["metadata"]["name"])


def test_two_long_releases_share_no_name() -> None:
    one = {(found["kind"], found["metadata"]["name"]) for found in objects(TWO_MODELS, name=LONG)}
    other = {(found["kind"], found["metadata"]["name"]) for found in objects(TWO_MODELS, name=f"{LONG[:-1]}x")}
    assert one & other == set()


def selectors(found: list[Object]) -> Iterator[tuple[Object, Object]]:
    """(an object, how it selects pods)"""
    for one in of_kind(found, "Service", "PodDisruptionBudget", "Deployment", "PodMonitor", "InferencePool"):
        yield one, one["spec"]["selector"]
    for one in of_kind(found, "NetworkPolicy"):
        yield one, one["spec"]["podSelector"]
        for rule in (*one["spec"]["ingress"], *one["spec"]["egress"]):
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "app.kubernetes.io/instance" in peer.get("podSelector", {}).get("matchLabels", {}):
                    yield one, peer["podSelector"]
    for pod in pods(found):
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            yield pod.owner, constraint["labelSelector"]


@every_case
def test_selectors_select_pods(case: str) -> None:
    found = objects(CASES[case])
    for one, selector in selectors(found):
        chosen = [pod for pod in pods(found) if selects(selector, pod.labels)]
        assert chosen, f"{one['kind']} {one['metadata']['name']} selects nothing"
        if one["kind"] == "Deployment":
            assert [pod.owner for pod in chosen] == [one]


@every_case
def test_services_lead_to_ports_of_the_pods_that_answer(case: str) -> None:
    found = objects(CASES[case])
    for service in of_kind(found, "Service"):
        chosen = [pod for pod in pods(found) if selects(service["spec"]["selector"], pod.labels)]
        # Not to the other nodes of a model, to a test, or to a download.
        assert {pod.labels["app.kubernetes.io/component"] for pod in chosen} <= {"server", "router"}
        assert len(chosen) == 1
        named = {port["name"] for pod in chosen for container in pod.containers for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@every_case
def test_monitors_find_their_ports(case: str) -> None:
    found = objects(CASES[case])
    for monitor in of_kind(found, "ServiceMonitor"):
        chosen = [
            one for one in of_kind(found, "Service") if selects(monitor["spec"]["selector"], one["metadata"]["labels"])
        ]
        assert len(chosen) == len(of_kind(found, "Deployment", "LeaderWorkerSet"))
        for service in chosen:
            assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


@every_case
def test_every_reference_leads_somewhere(case: str) -> None:
    found = objects(CASES[case])
    there = {(one["kind"], one["metadata"]["name"]) for one in found}

    def is_there(kind: str, name: str) -> bool:
        return (kind, name) in there or name in ELSEWHERE

    for one in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        assert is_there(target["kind"], target["name"])
        (scaled,) = [
            other for other in found if (other["kind"], other["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        assert scaled["apiVersion"] == target["apiVersion"]
        # Or every upgrade would undo what the autoscaler did.
        assert "replicas" not in scaled["spec"]
    for one in of_kind(found, "Ingress"):
        for rule in one["spec"]["rules"]:
            assert is_there("Service", rule["http"]["paths"][0]["backend"]["service"]["name"])
    for one in of_kind(found, "BackendTrafficPolicy"):
        for target in one["spec"]["targetRefs"]:
            assert is_there(target["kind"], target["name"])
    for one in of_kind(found, "HTTPRoute"):
        backend = one["spec"]["rules"][0]["backendRefs"][0]
        assert is_there(backend.get("kind", "Service"), backend["name"])
    for pod in pods(found):
        for kind, name in references(pod.spec):
            assert is_there(kind, name), f"{kind} {name}"
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for container in pod.containers:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


def references(spec: Object) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]


def test_each_model_is_missed_that_has_to_be_there() -> None:
    cron = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *"}}
    sleeping = {"keda": {"enabled": True, "minReplicas": 0, "triggers": [cron]}}
    models = [
        {"name": "one", "model": "llava-tiny-1.5"},
        {"name": "two", "model": "llava-tiny-1.6", "replicas": 0, **SCALING},
        {"name": "asleep", "model": "a/b", **sleeping},
        {"name": "off", "model": "c/d", "replicas": 0},
    ]
    rule = only(objects({"models": models, "prometheusRule": {"enabled": True}}), "PrometheusRule")
    alerts = [
        one for group in rule["spec"]["groups"] for one in group["rules"] if "absent(llava_api_build" in one["expr"]
    ]
    missed = [one["annotations"]["summary"] for one in alerts]
    assert missed == [f"No pod of llava-llava-api-{name} in ai gives its metrics." for name in ("one", "two")]
    assert len({one["expr"] for one in alerts}) == 2
    # As the servers name them in their own series.
    assert [one["labels"]["model"] for one in alerts] == ["llava-tiny-1.5", "llava-tiny-1.6"]


@every_case
def test_every_alert_leads_to_its_runbook(case: str) -> None:
    headings = re.findall(r"(?m)^### (LlavaApi\w+)$", (ROOT / "docs/operations.md").read_text(encoding="utf-8"))
    anchors = {f"{RUNBOOKS}#{heading.lower()}" for heading in headings}
    for rule in of_kind(objects(CASES[case]), "PrometheusRule"):
        alerts = [one for group in rule["spec"]["groups"] for one in group["rules"] if one["alert"].startswith("Llava")]
        assert {one["annotations"].get("runbook_url") for one in alerts} <= anchors


def test_the_file_of_alerts_is_limited_to_the_releases_pods() -> None:
    chosen = {"enabled": True, "errorRatio": 0.25, "firstTokenSeconds": 3, "runbookUrl": "https://wiki.example.com/x"}
    rule = only(objects({**TWO_MODELS, "prometheusRule": chosen}), "PrometheusRule")
    alerts = {one["alert"]: one for one in rule["spec"]["groups"][0]["rules"]}
    assert len(alerts) > 10
    pods = "|".join(f"llava-llava-api-{name}-[a-z0-9]+-[a-z0-9]{{5}}" for name in ("one", "two"))
    for name, alert in alerts.items():
        series = re.findall(r"[a-z:_]+\{([^}]+)\}", alert["expr"].replace("{5}", "(5)"))
        assert series
        wanted = f'namespace="ai",pod=~"{pods}"'.replace("{5}", "(5)")
        assert all(selector.startswith(wanted) for selector in series), name
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example.com/x#{name.lower()}"
    assert alerts["LlavaApiErrors"]["expr"].rstrip().endswith("> 0.25")
    assert alerts["LlavaApiSlowFirstToken"]["expr"].rstrip().endswith("> 3")


def unchangeable(one: Object) -> Object | None:
    """What Kubernetes refuses to change in an object that it has; claims, of which the docs say so, are left out."""
    if one["kind"] == "Deployment":
        return one["spec"]["selector"]
    if one["kind"] == "Job":
        return one["spec"]["template"]
    if one["kind"] == "Service":
        return {"headless": one["spec"].get("clusterIP") == "None"}
    return {"type": one["type"]} if one["kind"] == "Secret" else None


def test_no_upgrade_changes_what_cannot_be_changed() -> None:
    """From any case to any other: two objects of one kind and name agree."""
    seen: dict[tuple[str, str], Object | None] = {}
    for case in CASES:
        for one in objects(CASES[case]):
            known = seen.setdefault((one["kind"], one["metadata"]["name"]), unchangeable(one))
            assert known == unchangeable(one), f"{case}: {one['kind']} {one['metadata']['name']}"
