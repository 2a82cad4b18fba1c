"""Values that fit the schema and not one another are refused, with a sentence that names them."""

import pytest
from helm_python.errors import HelmError

from tests.support.chart import Object, rendered
from tests.support.chart_cases import CLAIM, HUB, MULTI_NODE, ROUTE, SCALING, TWO_MODELS

ONCE: Object = {"persistence": {"enabled": True, "accessModes": ["ReadWriteOncePod"]}}
READ_ONLY: Object = {"persistence": {"enabled": True, "accessModes": ["ReadOnlyMany"]}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"terminationGracePeriodSeconds": 130}, "must be more than preStopSeconds"),
        ({"terminationGracePeriodSeconds": 60, "drainTimeoutSeconds": 50, "preStopSeconds": 10}, "must be more than"),
        ({"drainTimeoutSeconds": 150}, "must be more than"),
        (
            {"models": [{"name": "one", "model": "llava-tiny-1.5", "drainTimeoutSeconds": 600}]},
            "models, one: terminationGracePeriodSeconds",
        ),
        ({"autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "exclude each other"),
        (SCALING | {"autoscaling": {"enabled": True, "minReplicas": 9}}, "autoscaling.minReplicas"),
        ({"autoscaling": {"enabled": True}}, "set settings.max_num_seqs"),
        ({"keda": {"enabled": True, "query": "none"}}, "needs another trigger"),
        ({**MULTI_NODE, "podDisruptionBudget": {"maxUnavailable": "25%"}}, "must be a number with multiNode"),
        ({"model": HUB, "download": {"mode": "job"}, "persistence": {"enabled": True}}, "use download.mode initCont"),
        (
            {"model": HUB, "download": {"mode": "job"}, "persistence": {"enabled": True, "existingClaim": "weights"}},
            "also to describe an existing claim",
        ),
        ({**TWO_MODELS, "apiKeys": {"values": {"anne": "sha256:" + "0" * 64}}}, "router.key.existingSecret"),
        ({"podSpec": {"containers": []}}, "use sidecars"),
        ({"podSpec": {"volumes": []}}, "use the value volumes"),
        ({"podSpec": {"securityContext": {}}}, "use podSecurityContext"),
        ({"podSpec": {"hostNetwork": True}}, "share nothing with their node"),
        ({"podSpec": {"automountServiceAccountToken": True}}, "is the chart's own"),
        ({"models": [{"name": "a", "model": "x", "podSpec": {"hostPID": True}}]}, "models, a: podSpec.hostPID"),
        ({"keda": {"enabled": True, "minReplicas": 9}}, "keda.minReplicas is more"),
        ({"keda": {"enabled": True, "minReplicas": 0}}, "or a trigger in keda.triggers"),
        (
            {**TWO_MODELS, "router": {"enabled": False}, "keda": {"enabled": True, "minReplicas": 0}},
            "the router, which holds their requests",
        ),
        ({"keda": {"enabled": True}, "metrics": {"enabled": False}}, "set metrics.enabled"),
        ({"podMonitor": {"enabled": True}, "metrics": {"enabled": False}}, "set metrics.enabled"),
        ({"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}, "enable one"),
        ({"gpu": {"count": 2}, "settings": {"tensor_parallel_size": 4}}, "settings want 4 GPUs"),
        ({**MULTI_NODE, "settings": {"tensor_parallel_size": 4, "pipeline_parallel_size": 3}}, "there are 8"),
        ({"multiNode": {"nodes": 2}}, "set gpu.count"),
        ({**MULTI_NODE, "persistence": {"enabled": True}}, "ReadWriteMany"),
        ({**ONCE, "replicas": 2}, "ReadWriteOncePod"),
        ({"download": {"mode": "initContainer"}}, "needs a hub id"),
        ({"model": "/data/llava", "download": {"mode": "initContainer"}}, "needs a hub id"),
        ({"model": "--local-dir=/x", "download": {"mode": "initContainer"}}, "needs a hub id"),
        ({"model": HUB, "download": {"mode": "initContainer", "also": ["--local-dir=/x"]}}, "needs a hub id"),
        ({"model": HUB, "download": {"mode": "job"}, **ONCE}, "ReadWriteOncePod"),
        ({"model": "llava-tiny-1.5", "download": {"mode": "job"}, **CLAIM}, "needs a hub id"),
        (
            {"model": HUB, "download": {"mode": "job"}, "persistence": {"volume": {"hostPath": {}}}},
            "hostPath is not one",
        ),
        ({"model": HUB, "download": {"mode": "job"}, **READ_ONLY}, "a volume that is read-only"),
        (
            {"model": HUB, "download": {"mode": "initContainer"}, "persistence": {"volume": {"image": {"a": 1}}}},
            "read-only",
        ),
        ({**MULTI_NODE, "cache": {"enabled": True}}, "cache.accessModes .ReadWriteMany"),
        ({"cache": {"enabled": True, "accessModes": ["ReadWriteOncePod"]}, "replicas": 2}, "cache.accessModes"),
        ({"batches": {"enabled": True}, "replicas": 2}, "needs exactly one pod"),
        ({"batches": {"enabled": True}, "replicas": 0}, "needs exactly one pod"),
        ({"batches": {"enabled": True}, **SCALING}, "neither autoscaling nor keda"),
        ({"batches": {"enabled": True}, "keda": {"enabled": True}}, "neither autoscaling nor keda"),
        (
            {"models": [{"name": "a", "model": "x", "batches": {"enabled": True}, "replicas": 2}]},
            "models, a: batches.enabled needs exactly one pod",
        ),
        ({"batches": {"enabled": True}, **MULTI_NODE}, "does not go with multiNode"),
        ({"batches": {"enabled": True, "accessModes": ["ReadWriteMany"]}}, "accessModes"),
        ({"persistence": {"enabled": True, "volume": {"nfs": {"server": "a"}}}}, "takes the place of a claim"),
        ({"model": "/data/m", "download": {"command": ["cp"]}}, "download.mode initContainer or job"),
        ({"model": HUB, "download": {"mode": "initContainer", "image": "a"}}, "download.command, which is missing"),
        ({"model": "/data/m"}, "nothing puts /data/m into /data"),
        ({"settings": {"lora": ["birds=/data/adapters/birds"]}}, "nothing puts /data/adapters/birds"),
        ({"models": [{"name": "a", "model": "x"}, {"name": "a-cache", "model": "y"}]}, "the name a-cache belongs to"),
        ({"metrics": {"port": 8000}}, "metrics.port 8000"),
        ({"models": [{"name": "router", "model": "x"}]}, "the name router belongs to"),
        (
            {"models": [{"name": "a", "model": "x"}, {"name": "a-metrics", "model": "y"}]},
            "the name a-metrics belongs to",
        ),
        ({"model": HUB, "download": {"mode": "job"}}, "set persistence.enabled"),
        ({"model": HUB, "download": {"mode": "job"}, "hub": {"offline": True}, **CLAIM}, "hub.offline"),
        ({"inferencePool": {"enabled": True}}, "inferencePool.endpointPicker"),
        ({"httpRoute": {"enabled": True}}, "name the Gateway"),
        ({**TWO_MODELS, **ROUTE, "router": {"enabled": False}}, "one entrance only with router.enabled"),
        ({"apiKeys": {"existingSecret": "a", "values": {"anne": "sk-llava-0123456789"}}}, "apiKeys.existingSecret"),
        ({"models": [{"name": "a", "model": "x"}, {"name": "a", "model": "y"}]}, "given twice"),
        ({"models": [{"name": "a", "model": "x"}, {"name": "b", "model": "x"}]}, "two of them are served as x"),
        (
            {"models": [{"name": "a", "model": "x"}, {"name": "b", "model": "y", "settings": {"lora": ["x=/data/x"]}}]},
            "two of them are served as x",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: Object, words: str) -> None:
    with pytest.raises(HelmError, match=words):
        rendered(values)


def test_release_that_begins_with_a_digit_is_told_what_to_set() -> None:
    with pytest.raises(HelmError, match="set fullnameOverride"):
        rendered({}, name="1demo")
    assert rendered({"fullnameOverride": "demo"}, name="1demo")


def test_one_second_more_is_enough() -> None:
    assert rendered({"terminationGracePeriodSeconds": 131})


def test_zero_pods_with_a_trigger_that_wakes_them() -> None:
    cron = {
        "type": "cron",
        "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "1"},
    }
    assert rendered({"keda": {"enabled": True, "minReplicas": 0, "triggers": [cron]}})
