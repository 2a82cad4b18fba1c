"""Several models have one entrance: ``llava-api route``, which finds each pod of each model and drains as they do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from helm_python.errors import HelmError

from llava_api.cli.flags import FRONT_SETTINGS
from llava_api.cli.main import build_parser
from llava_api.cli.route import ADDRESS
from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked
from llava_api.telemetry.router_metrics import RouterMetrics
from tests.support.chart import Object, Pod, example, objects, of_kind, only, pods, rendered, selects
from tests.support.chart_cases import CASES, TWO_MODELS
from tests.support.waiting import wait_until

KEY = "sk-llava-0123456789abcdef"
ROUTED = [case for case in CASES if CASES[case].get("models") and CASES[case].get("router", {}).get("enabled", True)]
every_routed_case = pytest.mark.parametrize("case", ROUTED)


def router_of(values: Object) -> Pod:
    (one,) = [pod for pod in pods(objects(values)) if pod.component == "router"]
    return one


@every_routed_case
def test_every_model_is_a_backend_with_an_address_for_each_pod(case: str) -> None:
    found = objects(CASES[case])
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(found, "Service")}
    chosen = build_parser().parse_args(router_of(CASES[case]).spec["containers"][0]["args"])
    assert chosen.command == "route"
    models = []
    for backend in chosen.backend:
        assert ADDRESS.fullmatch(backend)
        host, port = re.fullmatch(r"http://(.+):(\d+)", backend).groups()
        # A Service with an address of its own would hide its pods, and follow-ups would miss their caches.
        assert services[host]["clusterIP"] == "None"
        assert services[host]["ports"][0]["port"] == int(port) == 8000
        models += [
            pod.labels["llava-api/model"]
            for pod in pods(found)
            if pod.component in ("server", "worker") and selects(services[host]["selector"], pod.labels)
        ]
    assert models == [one["name"] for one in CASES[case]["models"]]


@every_routed_case
def test_the_router_is_started_with_settings_that_it_has(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = router_of(CASES[case]).settings
    assert {name.removeprefix("LLAVA_").lower() for name in settings if name.startswith("LLAVA_")} <= {*FRONT_SETTINGS}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.port == 8000
    assert read.metrics_port == 9000
    assert bool(read.api_key_dir) != read.allow_anonymous


def test_the_router_has_all_settings_of_the_top_level_that_concern_it() -> None:
    # The servers' keys are the router's too, so it makes none.
    made_by_chart = marked(Mark.MADE_BY_CHART) | {"make_key"}
    given = {"max_body_bytes": 3, "max_inflight_bytes": 4, "ollama_api": True, "cors_allow_origins": ["https://a"]}
    for name in {*FRONT_SETTINGS} - made_by_chart - given.keys():
        default = Settings.model_fields[name].default
        given[name] = default if default is not None else "x"
    given = {name: value for name, value in given.items() if value not in ([], (), None)}
    found = router_of({**TWO_MODELS, "settings": {**given, "max_model_len": 4096}}).settings
    assert {f"LLAVA_{name.upper()}" for name in given} <= found.keys()
    assert found["LLAVA_OLLAMA_API"] == "true"
    # Not those that size a server: the router has a memory of its own.
    assert found["LLAVA_MAX_INFLIGHT_BYTES"] == "1000000000"
    own = router_of({**TWO_MODELS, "router": {"settings": {"max_inflight_bytes": 5}}}).settings
    assert own["LLAVA_MAX_INFLIGHT_BYTES"] == "5"


def test_the_router_takes_the_largest_body_that_a_model_takes() -> None:
    values: Object = {"models": [{**TWO_MODELS["models"][0], "settings": {"max_body_bytes": 250_000_000}}]}
    assert router_of(values).settings["LLAVA_MAX_BODY_BYTES"] == "250000000"
    assert router_of(TWO_MODELS).settings["LLAVA_MAX_BODY_BYTES"] == str(Settings().max_body_bytes)


def test_the_router_waits_as_long_as_the_slowest_model_may_take() -> None:
    slow: Object = {"models": [{**TWO_MODELS["models"][0], "settings": {"request_timeout_seconds": 1800}}]}
    assert float(router_of(slow).settings["LLAVA_REQUEST_TIMEOUT_SECONDS"]) == 1800
    own = {**slow, "router": {"settings": {"request_timeout_seconds": 900}}}
    assert float(router_of(own).settings["LLAVA_REQUEST_TIMEOUT_SECONDS"]) == 900
    assert "LLAVA_REQUEST_TIMEOUT_SECONDS" not in router_of(TWO_MODELS).settings


def test_settings_of_an_engine_are_refused() -> None:
    with pytest.raises(HelmError, match="max_model_len"):
        rendered({**TWO_MODELS, "router": {"settings": {"max_model_len": 4096}}})


def test_the_router_checks_the_servers_keys_and_makes_no_secret() -> None:
    (keys,) = [one for one in router_of(TWO_MODELS).spec["volumes"] if one["name"] == "api-keys"]
    assert keys["secret"]["secretName"] == only(objects(TWO_MODELS), "Secret")["metadata"]["name"]
    own = {**TWO_MODELS, "apiKeys": {"existingSecret": "keys"}}
    assert of_kind(objects(own), "Secret") == []
    chosen = build_parser().parse_args(router_of(own).spec["containers"][0]["args"])
    (mount,) = [one for one in router_of(own).spec["containers"][0]["volumeMounts"] if one["name"] == "api-keys"]
    assert str(chosen.backend_key_file) == mount["mountPath"] == router_of(own).settings["LLAVA_API_KEY_DIR"]
    unlocked = router_of({**TWO_MODELS, "apiKeys": {"enabled": False}})
    assert unlocked.settings["LLAVA_ALLOW_ANONYMOUS"] == "true"
    assert "--backend-key-file" not in unlocked.spec["containers"][0]["args"]


def test_a_key_of_its_own_lists_the_models_if_all_others_are_hashes() -> None:
    values = {**TWO_MODELS, "router": {"key": {"existingSecret": "router-key"}}}
    router = router_of(values)
    container = router.spec["containers"][0]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "router-key"]
    file = build_parser().parse_args(container["args"]).backend_key_file
    assert str(file) == f"{mount['mountPath']}/key"
    assert {"name": "router-key", "secret": {"secretName": "router-key", "defaultMode": 0o440}} in router.spec[
        "volumes"
    ]


def test_the_router_has_the_servers_image_without_cuda() -> None:
    gpu: Object = {"models": [{**one, "gpu": {"count": 1}} for one in TWO_MODELS["models"]]}
    images = {pod.component: pod.spec["containers"][0]["image"] for pod in pods(objects(gpu))}
    assert images["router"] == f"{images['server']}-cpu"
    own = router_of({**gpu, "router": {"image": {"tag": "edge"}}}).spec["containers"][0]
    assert own["image"] == "ghcr.io/llava-api/llava-api:edge"
    assert own["imagePullPolicy"] == "IfNotPresent"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in own["env"]


def test_the_router_runs_before_a_model_is_loaded() -> None:
    container = router_of(TWO_MODELS).spec["containers"][0]
    assert container["startupProbe"]["httpGet"] == {"path": "/health/live", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "metrics"}


def test_the_router_reaches_the_servers_and_what_it_is_told() -> None:
    redis = {"ports": [{"port": 6379}], "to": [{"podSelector": {}}]}

    def egress(values: Object) -> list[Object]:
        policies = of_kind(objects({**TWO_MODELS, **values}), "NetworkPolicy")
        (one,) = [each["spec"] for each in policies if each["metadata"]["name"].endswith("-router")]
        return one["egress"]

    _, servers = egress({})
    assert servers["ports"] == [{"port": 8000, "protocol": "TCP"}]
    assert servers["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    assert egress({"router": {"networkPolicy": {"egress": [redis]}}})[2] == redis
    # What servers may reach is no business of the router's.
    assert len(egress({"networkPolicy": {"egress": [redis]}})) == 2


def test_the_entrance_is_the_routers() -> None:
    found = objects({**TWO_MODELS, "service": {"type": "LoadBalancer", "port": 80}})
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(found, "Service")}
    assert services["llava-llava-api"]["type"] == "LoadBalancer"
    assert services["llava-llava-api"]["selector"]["app.kubernetes.io/component"] == "router"
    assert {spec["type"] for name, spec in services.items() if name != "llava-llava-api"} == {"ClusterIP"}
    alone = objects({"service": {"type": "LoadBalancer"}})
    assert [one["spec"]["type"] for one in of_kind(alone, "Service")] == ["LoadBalancer", "ClusterIP"]


def test_the_router_is_scraped_and_missed() -> None:
    watched = {**TWO_MODELS, "prometheusRule": {"enabled": True}}
    monitor = only(objects({**watched, "podMonitor": {"enabled": True}}), "PodMonitor")["spec"]
    assert selects(monitor["selector"], router_of(watched).labels)
    alerts = {
        rule["alert"]: rule
        for group in only(objects(watched), "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    }
    page = RouterMetrics({"version": "0"}).page("")[0].decode()
    for alert in ("LlavaApiRouterGone", "LlavaApiRouterErrors"):
        named = re.findall(r"llava_api_router_[a-z_]+", alerts[alert]["expr"])
        assert named
        assert all(name in page for name in named)
        (pattern,) = {*re.findall(r'pod=~"([^"]+)"', alerts[alert]["expr"])}
        assert re.fullmatch(pattern, "llava-llava-api-router-5d4f8b9c7d-x2x4z")
        assert not re.fullmatch(pattern, "llava-llava-api-one-5d4f8b9c7d-x2x4z")
    without = only(objects({"prometheusRule": {"enabled": True}}), "PrometheusRule")["spec"]["groups"]
    assert not [rule for group in without for rule in group["rules"] if "Router" in rule["alert"]]


def test_a_router_that_scales_leaves_its_pods_to_the_scaler() -> None:
    values = {**TWO_MODELS, "router": {"autoscaling": {"enabled": True, "maxReplicas": 9}}}
    scaler = only(objects(values), "HorizontalPodAutoscaler")["spec"]
    (router,) = [one for one in of_kind(objects(values), "Deployment") if one["metadata"]["name"].endswith("-router")]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 9)
    assert scaler["scaleTargetRef"]["name"] == router["metadata"]["name"]
    assert "replicas" not in router["spec"]
    assert router["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]


def test_the_routers_pods_have_a_priority_labels_and_other_fields() -> None:
    own = {
        "priorityClassName": "high",
        "schedulerName": "volcano",
        "podLabels": {"team": "vision"},
        "podAnnotations": {"a.example.com/b": "c"},
        "podSpec": {"hostAliases": [{"ip": "10.0.0.9", "hostnames": ["a.internal"]}]},
    }
    router = router_of({**TWO_MODELS, "priorityClassName": "low", "podSpec": {"dnsPolicy": "None"}, "router": own})
    assert (router.spec["priorityClassName"], router.spec["schedulerName"]) == ("high", "volcano")
    assert router.labels["team"] == "vision"
    assert router.spec["hostAliases"] == own["podSpec"]["hostAliases"]
    assert "dnsPolicy" not in router.spec
    with pytest.raises(HelmError, match=r"router: podSpec\.hostNetwork"):
        rendered({**TWO_MODELS, "router": {"podSpec": {"hostNetwork": True}}})


def test_models_differ_where_they_say_so() -> None:
    one, two = of_kind(objects({**TWO_MODELS, "models": [*TWO_MODELS["models"][:1], changed()]}), "Deployment")[:2]
    assert one["spec"]["replicas"] == 1
    assert two["spec"]["replicas"] == 3
    # The rest of a group stays as it is for all.
    assert two["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["failureThreshold"] == 2
    assert two["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] == 10


def changed() -> Object:
    return {
        "name": "two",
        "model": "llava-tiny-1.6",
        "replicas": 3,
        "podDisruptionBudget": {"enabled": False},
        "probes": {"liveness": {"failureThreshold": 2}},
    }


def test_a_switch_can_be_off_for_one_model() -> None:
    values = {"models": [TWO_MODELS["models"][0], changed()]}
    budgets = [one["metadata"]["name"] for one in of_kind(objects(values), "PodDisruptionBudget")]
    assert budgets == ["llava-llava-api-one", "llava-llava-api-router"]


@pytest.mark.parametrize("adapters", [["birds=/data/b", "charts=/data/c"], "birds=/data/b, charts=/data/c"])
def test_adapters_are_models_too(adapters: object) -> None:
    claim = {"persistence": {"enabled": True, "existingClaim": "weights"}}
    models = [{"name": "one", "model": "llava-tiny-1.5", "settings": {"lora": adapters}, **claim}]
    assert "serves llava-tiny-1.5 birds charts." in rendered({"models": models})["templates/NOTES.txt"]
    with pytest.raises(HelmError, match="two of them are served as charts"):
        rendered({"models": [*models, {"name": "two", "model": "charts"}]})


def test_the_example_of_three_models_names_them_all() -> None:
    notes = rendered(example("three-models"))["templates/NOTES.txt"]
    for name in ("llava-1.5-7b", "default", "llava-1.6-mistral-7b", "llava-tiny-1.5"):
        assert f" {name}" in notes


def test_the_pods_command_and_variables_start_a_router(tmp_path: Path) -> None:
    """On this machine: its folder of keys and its ports are other ones."""
    pod = router_of(example("scale-to-zero"))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "anne").write_text(KEY)
    args = [argument.replace("/etc/llava-api", str(tmp_path)) for argument in pod.spec["containers"][0]["args"]]
    settings = {name: value.replace("/etc/llava-api", str(tmp_path)) for name, value in pod.settings.items()}
    settings |= {"LLAVA_HOST": "127.0.0.1", "LLAVA_METRICS_HOST": "127.0.0.1", "PATH": os.environ["PATH"]}
    settings |= {"LLAVA_PORT": "0", "LLAVA_METRICS_PORT": "0"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "llava_api", *args], env=settings, stdout=log, stderr=log)
    try:
        wait_until(lambda: base_url(tmp_path / "log") or process.poll() is not None, 30)
        url = base_url(tmp_path / "log")
        assert url, (tmp_path / "log").read_text()
        assert httpx.get(f"{url}/models").status_code == 401
        listed = httpx.get(f"{url}/models", headers={"authorization": f"Bearer {KEY}"})
        assert listed.status_code == 200, listed.text
        (card,) = listed.json()["data"]
        assert card["id"] == "llava-1.5-7b"
    finally:
        process.terminate()
        assert process.wait(30) == 0


def base_url(log: Path) -> str:
    found = re.search(r"Base URL: (http[^\s\"]+)", log.read_text())
    return found[1] if found else ""


def test_notes_say_where_the_files_are_that_the_router_does_not_pass_on() -> None:
    one, two = TWO_MODELS["models"]
    values = {"models": [one | {"batches": {"enabled": True}}, two]}
    address = "http://llava-llava-api-one.ai:8000/v1"
    assert any(of["metadata"]["name"] == "llava-llava-api-one" for of in of_kind(objects(values), "Service"))
    assert f"Those of llava-llava-api-one are at {address}." in rendered(values)["templates/NOTES.txt"]
    assert "/v1/batches" not in rendered({"batches": {"enabled": True}})["templates/NOTES.txt"]
