"""Who may reach a pod, whom it may reach, and what the entrances lead to."""

import pytest

from llava_api.images.guard import NOT_PUBLIC_4, NOT_PUBLIC_6
from llava_api.server import routes
from llava_api.server.routes import docs
from llava_api.settings import Settings
from tests.support.chart import Object, objects, of_kind, only, pods, rendered
from tests.support.chart_cases import CASES, POOL, ROUTE
from tests.support.endpoints import example_address

NAME_SERVER_PORTS = {53, 5353}
every_case = pytest.mark.parametrize("case", CASES)


def policies(values: Object) -> list[Object]:
    return [one["spec"] for one in of_kind(objects(values), "NetworkPolicy")]


def ports(rule: Object) -> set[int]:
    return {port["port"] for port in rule.get("ports", [])}


@every_case
def test_no_port_is_open_to_the_whole_world(case: str) -> None:
    """A rule without peers would let a pod send data to any address, port 53 of a stranger's name server too."""
    values = CASES[case]
    own = [*values.get("networkPolicy", {}).get("egress", [])]
    own += values.get("router", {}).get("networkPolicy", {}).get("egress", [])
    for policy in policies(CASES[case]):
        for rule in policy["egress"]:
            assert rule.get("to") or rule in own


@every_case
def test_name_servers_are_reached_in_kubernetes_and_in_openshift(case: str) -> None:
    """OVN-Kubernetes judges a connection by the pod's port behind the Service: 5353 in OpenShift."""
    for policy in policies(CASES[case]):
        (rule,) = [rule for rule in policy["egress"] if ports(rule) == NAME_SERVER_PORTS]
        assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {
            (port, protocol) for port in NAME_SERVER_PORTS for protocol in ("UDP", "TCP")
        }
        spaces = [peer["namespaceSelector"]["matchLabels"] for peer in rule["to"] if "namespaceSelector" in peer]
        assert {one["kubernetes.io/metadata.name"] for one in spaces} == {"kube-system", "openshift-dns"}


def test_name_servers_can_be_others() -> None:
    own = {"dns": {"ports": [1053], "to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}}
    rule = policies({"networkPolicy": own})[0]["egress"][0]
    assert ports(rule) == {1053}
    assert rule["to"] == [{"ipBlock": {"cidr": "10.96.0.10/32"}}]


def test_network_policy_closes_what_the_guard_closes() -> None:
    policy = only(objects(), "NetworkPolicy")["spec"]
    (out,) = [rule for rule in policy["egress"] if ports(rule) == {80, 443}]
    blocks = {peer["ipBlock"]["cidr"]: set(peer["ipBlock"]["except"]) for peer in out["to"]}
    assert blocks == {"0.0.0.0/0": {str(one) for one in NOT_PUBLIC_4}, "2000::/3": {str(one) for one in NOT_PUBLIC_6}}
    assert policy["ingress"][0] == {"ports": [{"port": 8000, "protocol": "TCP"}]}


def test_network_policy_can_close_the_way_out() -> None:
    (names,) = policies({"networkPolicy": {"ports": []}})[0]["egress"]
    assert ports(names) == NAME_SERVER_PORTS
    assert policies({"networkPolicy": {"ports": [], "dns": {"to": []}}})[0]["egress"] is None


def test_a_meshs_connections_can_come_in() -> None:
    tunnel = {"ports": [{"port": 15008, "protocol": "TCP"}]}
    assert tunnel in policies({"networkPolicy": {"ingress": [tunnel]}})[0]["ingress"]


@every_case
def test_the_picker_of_a_pool_can_read_metrics(case: str) -> None:
    """It reads /metrics at the pool's own port, and shows no key."""
    found = objects(CASES[case])
    pools = {one["spec"]["selector"]["matchLabels"]["llava-api/model"] for one in of_kind(found, "InferencePool")}
    for pod in pods(found):
        if pod.component == "server":
            assert pod.settings["LLAVA_METRICS"] == ("open" if pod.labels["llava-api/model"] in pools else "off")
    for pool in of_kind(found, "InferencePool"):
        assert [one["number"] for one in pool["spec"]["targetPorts"]] == [8000]


def test_the_picker_must_be_let_in() -> None:
    closed = {**POOL, "networkPolicy": {"from": [{"podSelector": {}}]}}
    assert "endpoint picker" in rendered(closed)["templates/NOTES.txt"]
    assert "endpoint picker" not in rendered(POOL)["templates/NOTES.txt"]


def leads_on(route: Object, path: str) -> bool:
    matches = [one["path"] for rule in route["spec"]["rules"] for one in rule["matches"]]
    return any(
        path == one["value"] if one["type"] == "Exact" else f"{path}/".startswith(f"{one['value'].rstrip('/')}/")
        for one in matches
    )


def test_metrics_that_are_open_for_a_picker_are_not_open_to_the_world() -> None:
    route = only(objects({**POOL, **ROUTE}), "HTTPRoute")
    assert not leads_on(route, "/metrics")
    assert not leads_on(route, "//metrics")
    every = [one for one in (*routes.ENDPOINTS, *docs.ENDPOINTS) if one.access(Settings()) != "off"]
    for endpoint in every:
        if endpoint.path != "/metrics":
            assert leads_on(route, example_address(endpoint)), endpoint.path
            assert not endpoint.short_path or leads_on(route, example_address(endpoint).removeprefix("/v1"))
    assert len(every) > 15
    assert leads_on(only(objects(ROUTE), "HTTPRoute"), "/anything")
