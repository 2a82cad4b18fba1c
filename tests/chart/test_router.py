"""Several models have one entrance: LiteLLM is told of each, and callers' keys go through it to the servers."""

import asyncio
import hashlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, Object, example, objects, of_kind, only
from tests.support.chart_cases import TWO_MODELS

KEY = "sk-llava-0123456789abcdef"


def config(values: Object) -> Object:
    (found,) = [one for one in of_kind(objects(values), "ConfigMap") if "config.yaml" in one["data"]]
    return yaml.safe_load(found["data"]["config.yaml"])


def test_every_served_name_leads_to_its_server() -> None:
    values = example("three-models")
    found = objects(values)
    services = {one["metadata"]["name"]: one for one in of_kind(found, "Service")}
    routes = {one["model_name"]: one["litellm_params"] for one in config(values)["model_list"]}
    assert {name: to["api_base"].rpartition("-")[2] for name, to in routes.items()} == {
        "llava-1.5-7b": "vicuna:8000/v1",
        "default": "vicuna:8000/v1",
        "llava-1.6-mistral-7b": "mistral:8000/v1",
        "llava-tiny-1.5": "demo:8000/v1",
    }
    for name, to in routes.items():
        assert to.keys() == {"model", "api_base", "api_key"}
        assert to["model"] == f"hosted_vllm/{name}"
        host = to["api_base"].removeprefix("http://").partition(":")[0]
        assert services[host]["spec"]["ports"][0]["port"] == 8000


@pytest.mark.parametrize("adapters", [["birds=org/b", "charts=/data/c"], "birds=org/b, charts=/data/c"])
def test_adapters_are_models_too(adapters: object) -> None:
    models = [
        {"name": "one", "model": "llava-tiny-1.5", "settings": {"lora": adapters}, "persistence": {"enabled": True}}
    ]
    assert {one["model_name"] for one in config({"models": models})["model_list"]} == {
        "llava-tiny-1.5",
        "birds",
        "charts",
    }


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


def test_the_entrance_is_the_routers() -> None:
    found = objects({**TWO_MODELS, "service": {"type": "LoadBalancer", "port": 80}})
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(found, "Service")}
    assert services["llava-llava-api"]["type"] == "LoadBalancer"
    assert services["llava-llava-api"]["selector"]["app.kubernetes.io/component"] == "router"
    assert {spec["type"] for name, spec in services.items() if name != "llava-llava-api"} == {"ClusterIP"}
    alone = objects({"service": {"type": "LoadBalancer"}})
    assert [one["spec"]["type"] for one in of_kind(alone, "Service")] == ["LoadBalancer", "ClusterIP"]


def test_more_configuration_is_laid_over() -> None:
    found = config({**TWO_MODELS, "router": {"config": {"litellm_settings": {"request_timeout": 5}}}})
    assert found["litellm_settings"]["request_timeout"] == 5
    assert found["litellm_settings"]["callbacks"] == "router_keys.callers_key"
    assert len(found["model_list"]) == 2


def test_router_reaches_the_servers_and_nothing_else() -> None:
    (policy,) = [
        one["spec"] for one in of_kind(objects(TWO_MODELS), "NetworkPolicy") if "router" in one["metadata"]["name"]
    ]
    names, servers = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53, 5353}
    assert servers["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


class Refused(Exception):
    def __init__(self, **told: object) -> None:
        self.told = told


@pytest.fixture
def router_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that LiteLLM loads, over stand-ins for the three of LiteLLM's classes that it uses."""
    (tmp_path / "anne").write_text(KEY)
    (tmp_path / "bob").write_text(f"sha256:{hashlib.sha256(b'sk-llava-of-bob-0123').hexdigest()}\n")
    (tmp_path / "..data").mkdir()
    monkeypatch.setenv("LLAVA_API_KEY_DIR", str(tmp_path))
    logger = types.SimpleNamespace(CustomLogger=object)
    kinds = types.SimpleNamespace(ProxyException=Refused, UserAPIKeyAuth=types.SimpleNamespace)
    for name, module in {"litellm": types.SimpleNamespace(), "litellm.integrations": types.SimpleNamespace()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "litellm.integrations.custom_logger", logger)
    monkeypatch.setitem(sys.modules, "litellm.proxy", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "litellm.proxy._types", kinds)
    spec = importlib.util.spec_from_file_location("router_keys", CHART / "files" / "router_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("key", "name"), [(KEY, "anne"), ("sk-llava-of-bob-0123", "bob")])
def test_caller_is_let_through_and_the_server_sees_the_callers_key(router_keys: Any, key: str, name: str) -> None:
    caller = asyncio.run(router_keys.authenticate(None, key))
    assert caller.key_alias == name
    assert key not in caller.api_key
    data = asyncio.run(router_keys.callers_key.async_pre_call_hook(caller, None, {"model": "x"}, "acompletion"))
    assert data == {"model": "x", "api_key": key}


@pytest.mark.parametrize("key", [None, "", "sk-llava-wrong", f"{KEY}x", "sha256:" + "0" * 64])
def test_others_are_not(router_keys: Any, key: str | None) -> None:
    with pytest.raises(Refused) as refused:
        asyncio.run(router_keys.authenticate(None, key))
    assert refused.value.told["code"] == 401


@pytest.mark.parametrize("entry", ["", "\n", "short", "sha256:\u00e9" + "0" * 63])
def test_an_entry_that_is_no_key_lets_nobody_in(router_keys: Any, tmp_path: Path, entry: str) -> None:
    (tmp_path / "0").write_text(entry, encoding="utf-8")
    for key in (None, entry.strip()):
        with pytest.raises(Refused):
            asyncio.run(router_keys.authenticate(None, key))
    assert asyncio.run(router_keys.authenticate(None, KEY)).key_alias == "anne"


def test_a_key_that_is_taken_away_is_refused_at_once(router_keys: Any, tmp_path: Path) -> None:
    asyncio.run(router_keys.authenticate(None, KEY))
    (tmp_path / "anne").unlink()
    with pytest.raises(Refused):
        asyncio.run(router_keys.authenticate(None, KEY))


def test_router_has_the_keys_where_they_are_asked_for() -> None:
    for keys, expected in ((True, {"/etc/llava-api/keys"}), (False, set())):
        found = objects({**TWO_MODELS, "apiKeys": {"enabled": keys}})
        (router,) = [one for one in of_kind(found, "Deployment") if "router" in one["metadata"]["name"]]
        container = router["spec"]["template"]["spec"]["containers"][0]
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert places - {"/etc/litellm", "/tmp"} == expected
        named = {one["name"]: one.get("value") for one in container["env"]}
        assert ("LLAVA_API_KEY_DIR" in named) == keys
        # Beside config.yaml LiteLLM would load the module twice, and its halves would not share what they know.
        (volume,) = [one for one in router["spec"]["template"]["spec"]["volumes"] if one["name"] == "config"]
        paths = {item["key"]: item["path"] for item in volume["configMap"]["items"]}
        assert f"/etc/litellm/{Path(paths['router_keys.py']).parent}" == named["PYTHONPATH"]
        assert paths["config.yaml"] == "config.yaml"
    assert only(objects({**TWO_MODELS, "apiKeys": {"enabled": False}}), "Secret")["data"].keys() == {"master-key"}
