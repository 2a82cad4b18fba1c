"""How many pods an autoscaler would make of the metrics, by Kubernetes' own formula, and what a drained node takes."""

import math
import re

import pytest

from llava_api.cli.main import build_parser
from llava_api.routing.replicas import Replicas
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics
from tests.support.chart import (
    EXAMPLES,
    VERSIONS,
    Object,
    check,
    example,
    objects,
    of_kind,
    only,
    pods,
    rendered,
    selects,
)
from tests.support.chart_cases import CASES, MULTI_NODE, SCALING, TWO_MODELS

AUTOSCALED = [case for case in CASES if CASES[case].get("autoscaling", {}).get("enabled")]


def desired(scaler: Object, pods_now: int, **metrics: float) -> int:
    """Kubernetes takes the largest of ceil(pods x mean / target) over the metrics, within the bounds."""
    wanted = 0
    for one in scaler["spec"]["metrics"]:
        name, target = one["pods"]["metric"]["name"], float(one["pods"]["target"]["averageValue"])
        wanted = max(wanted, math.ceil(pods_now * metrics[name] / target))
    return min(max(wanted, scaler["spec"]["minReplicas"]), scaler["spec"]["maxReplicas"])


@pytest.mark.parametrize("case", AUTOSCALED)
def test_pods_whose_slots_are_all_in_use_are_not_removed(case: str) -> None:
    (scaler, *_) = of_kind(objects(CASES[case]), "HorizontalPodAutoscaler")
    (server, *_) = [pod for pod in pods(objects(CASES[case])) if pod.component == "server"]
    slots = int(server.settings["LLAVA_MAX_NUM_SEQS"])
    most = scaler["spec"]["maxReplicas"]
    for now in range(scaler["spec"]["minReplicas"], most + 1):
        full = desired(scaler, now, llava_api_slots_in_use=slots, llava_api_queue_depth=0)
        assert full > now or now == most
        assert desired(scaler, now, llava_api_slots_in_use=math.floor(0.7 * slots), llava_api_queue_depth=0) == now
        assert desired(scaler, now, llava_api_slots_in_use=slots, llava_api_queue_depth=100) == most
    assert desired(scaler, most, llava_api_slots_in_use=0, llava_api_queue_depth=0) == scaler["spec"]["minReplicas"]


def test_the_rule_for_prometheus_adapter_in_the_example_offers_each_metric() -> None:
    (series,) = re.findall('__name__=~"([^"]+)"', EXAMPLES["autoscaling"].read_text(encoding="utf-8"))
    scaler = only(objects(example("autoscaling")), "HorizontalPodAutoscaler")
    assert all(re.fullmatch(series, one["pods"]["metric"]["name"]) for one in scaler["spec"]["metrics"])


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ({"settings": {"max_num_seqs": 10}}, "7"),
        ({"settings": {"max_num_seqs": 10, "data_parallel_size": 2}, "gpu": {"count": 2}}, "14"),
        ({"settings": {"max_num_seqs": 10, "max_running_answers": 20}}, "14"),
        ({"settings": {}, "autoscaling": {"enabled": True, "targetSlotsInUse": 5}}, "5"),
    ],
)
def test_the_target_follows_the_slots_that_the_server_will_have(values: Object, target: str) -> None:
    scaler = only(objects({**SCALING, **values}), "HorizontalPodAutoscaler")
    targets = {
        one["pods"]["metric"]["name"]: one["pods"]["target"]["averageValue"] for one in scaler["spec"]["metrics"]
    }
    assert targets == {"llava_api_slots_in_use": target, "llava_api_queue_depth": "4"}


def test_kedas_own_trigger_can_be_off_and_shows_a_password() -> None:
    cron = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *"}}
    (trigger,) = only(objects({"keda": {"enabled": True, "query": "none", "triggers": [cron]}}), "ScaledObject")[
        "spec"
    ]["triggers"]
    assert trigger == cron
    scaled = only(objects(CASES["keda-with-a-password"]), "ScaledObject")["spec"]
    assert scaled["triggers"][0]["authenticationRef"] == {"name": "prometheus"}
    assert scaled["triggers"][0]["metadata"]["authModes"] == "bearer"
    assert scaled["fallback"] == {"failureThreshold": 3, "replicas": 2}


def wake_triggers(values: Object) -> list[Object]:
    return [
        one["metadata"]
        for scaled in of_kind(objects(values), "ScaledObject")
        for one in scaled["spec"]["triggers"]
        if "waiting_requests" in one["metadata"].get("query", "")
    ]


def test_a_sleeping_model_is_woken_by_a_request_that_waits_and_only_to_one_pod() -> None:
    values = example("scale-to-zero")
    (trigger,) = wake_triggers(values)
    inside = re.fullmatch(r"clamp_max\(sum\((\w+)\{(.+)\}\), 1\)", trigger["query"])
    assert inside is not None
    # Kubernetes takes the largest of all triggers: however many wait, this one asks for one pod.
    assert (trigger["threshold"], trigger["activationThreshold"]) == ("1", "0")
    (router,) = [pod for pod in pods(objects(values)) if pod.component == "router"]
    chosen = build_parser().parse_args(router.spec["containers"][0]["args"])
    assert chosen.sleeping_model == ["llava-1.5-7b"]
    metrics = RouterMetrics({"version": "0"})
    replicas = Replicas(chosen.backend, Settings(), metrics, None, chosen.sleeping_model)
    replicas.sample()
    page = metrics.page("")[0].decode()
    # There before the first request: the first one would not be seen in a series that begins with it.
    assert f'{inside[1]}{{model="llava-1.5-7b"}} 0.0' in page
    labels = dict(re.findall(r'(\w+)=~?"([^"]+)"', inside[2]))
    assert labels["namespace"] == "ai"
    assert re.fullmatch(labels["pod"], "llava-llava-api-router-5d4f8b9c7d-x2x4z")
    assert re.fullmatch(labels["model"], "llava-1.5-7b")


def test_notes_say_that_a_sleeping_model_needs_the_routers_metrics() -> None:
    unwatched = {**example("scale-to-zero"), "podMonitor": {"enabled": False}}
    assert "woken by the router's metrics" in rendered(unwatched)["templates/NOTES.txt"]
    assert "woken by" not in rendered(example("scale-to-zero"))["templates/NOTES.txt"]


def test_models_that_stay_awake_are_not_waited_for() -> None:
    awake = {**TWO_MODELS, "keda": {"enabled": True}}
    assert wake_triggers(awake) == []
    (router,) = [pod for pod in pods(objects(awake)) if pod.component == "router"]
    assert "--sleeping-model" not in router.spec["containers"][0]["args"]


def test_a_budget_counts_every_pod_whose_end_ends_an_answer() -> None:
    """The eviction of a worker restarts its whole group; a download's ends nothing."""
    for values in (MULTI_NODE, {**CASES["fetch-job"]}):
        found = objects(values)
        budget = only(found, "PodDisruptionBudget")
        for version in (VERSIONS[0], VERSIONS[-1]):
            check(budget, version)
        counted = {pod.component for pod in pods(found) if selects(budget["spec"]["selector"], pod.labels)}
        assert counted == {pod.component for pod in pods(found)} - {"download", "test"}
