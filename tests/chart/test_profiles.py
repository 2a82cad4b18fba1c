"""The examples for OpenShift, Argo CD and the entrances keep what each of them asks for."""

import pytest

from tests.support.chart import EXAMPLES, Object, example, loaded, objects, of_kind, only, pods
from tests.support.chart_cases import CASES, TWO_MODELS

KEYS: dict[str, Object] = {
    "existingSecret": {"existingSecret": "keys"},
    "values": {"values": {"anne": "sk-llava-0123456789"}},
    "enabled": {"enabled": False},
}


def rendered_anew(values: Object) -> dict[str, str]:
    return loaded().render(values, name="llava", namespace="ai")


@pytest.mark.parametrize("values", [example("argo-cd"), *({**TWO_MODELS, "apiKeys": keys} for keys in KEYS.values())])
def test_two_renderings_are_equal(values: Object) -> None:
    """Argo CD renders again and again, without a cluster to look into, and compares."""
    assert rendered_anew(values) == rendered_anew(values)


def test_only_the_key_that_the_chart_makes_differs() -> None:
    """So that the test above can fail."""
    one, other = rendered_anew(TWO_MODELS), rendered_anew(TWO_MODELS)
    assert {path for path in one if one[path] != other[path]} == {"llava-api/templates/secret-api-keys.yaml"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_a_secret_of_your_own_or_no_keys(name: str) -> None:
    keys = example(name)["apiKeys"]
    assert "existingSecret" in keys or keys == {"enabled": False}


def test_openshift_chooses_users_and_groups_itself() -> None:
    found = [
        *pods(objects(CASES["openshift"])),
        *pods(objects({**CASES["openshift"], **TWO_MODELS, "servedModelNames": []})),
    ]
    assert {pod.component for pod in found} == {"server", "router", "test"}
    for pod in found:
        for security in (pod.spec["securityContext"], *(one["securityContext"] for one in pod.containers)):
            assert not security.keys() & {"runAsUser", "runAsGroup", "fsGroup"}
        assert pod.spec["securityContext"]["runAsNonRoot"] is True


def test_openshifts_route_waits_for_long_answers() -> None:
    ingress = only(objects(CASES["openshift"]), "Ingress")
    assert ingress["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"] == "3600s"
    assert ingress["spec"]["ingressClassName"] == "openshift-default"


def test_gateways_wait_for_long_answers() -> None:
    for case in ("envoy-gateway", "inference-gateway", "three-models"):
        (rule,) = only(objects(CASES[case]), "HTTPRoute")["spec"]["rules"]
        assert rule["timeouts"] == {"request": "0s"}
    policy = only(objects(CASES["envoy-gateway"]), "BackendTrafficPolicy")
    assert policy["spec"]["timeout"]["http"]["requestTimeout"] == "0s"


def test_every_host_of_an_ingress_leads_to_the_entrance() -> None:
    ingress = only(objects(CASES["ingress"]), "Ingress")["spec"]
    assert [rule["host"] for rule in ingress["rules"]] == ["a.example.com", "b.example.com"]
    assert ingress["tls"] == [{"hosts": ["a.example.com", "b.example.com"], "secretName": "tls"}]


def test_an_addresss_connections_can_stay_with_a_pod() -> None:
    def entrance(values: Object) -> Object:
        services = of_kind(objects(values), "Service")
        (one,) = [each for each in services if each["metadata"]["name"] == "llava-llava-api"]
        return one["spec"]

    for models in ({}, TWO_MODELS):
        spec = entrance({**models, **CASES["affinity"]})
        assert spec["sessionAffinity"] == "ClientIP"
        assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
        assert entrance(models)["sessionAffinity"] == "None"
