"""The examples as they were read and found good, what a person is told to type, and the scripts in the chart."""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.protocol.chat import ChatCompletionRequest
from tests.support.chart import (
    CHART,
    EXAMPLES,
    GOLDEN,
    ROOT,
    VERSIONS,
    check,
    example,
    golden,
    objects,
    of_kind,
    only,
    rendered,
)
from tests.support.chart_cases import CASES, MULTI_NODE, TWO_MODELS

DEMO_PICTURE = ROOT / "src" / "llava_api" / "demo" / "red-circle.png"


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_renders_as_it_did(name: str) -> None:
    """Renew with ``python -m tests.support.chart``, and read the difference."""
    assert golden(name) == (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")


def test_every_golden_render_has_its_example() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(EXAMPLES)


def test_every_example_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert [name for name in EXAMPLES if f"`{name}.yaml`" not in text] == []


def test_kubernetes_takes_the_claims_template_of_the_example() -> None:
    lines = EXAMPLES["dra"].read_text(encoding="utf-8").splitlines()
    template = yaml.safe_load("\n".join(line[4:] for line in lines if line.startswith("#   ")))
    check(template, VERSIONS[-1])
    (claim,) = example("dra")["podSpec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]


def told(values: dict[str, Any]) -> str:
    return rendered(values)["templates/NOTES.txt"]


@pytest.mark.parametrize("case", ["default", "no-keys", "three-models", "models-apart", "everything"])
def test_curl_of_the_notes_asks_about_an_image(case: str) -> None:
    (curl,) = [part for part in told(CASES[case]).split("\n\n") if " curl " in part or part.startswith("  curl")]
    words = shlex.split(curl[curl.index("curl") :])
    body = ChatCompletionRequest.model_validate_json(words[words.index("-d") + 1])
    (turn,) = body.model_dump(exclude_none=True)["messages"]
    image = turn["content"][1]["image_url"]["url"]
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")) == DEMO_PICTURE.read_bytes()
    assert ("Authorization: Bearer $KEY" in words) == CASES[case].get("apiKeys", {}).get("enabled", True)
    assert ("KEY=" in told(CASES[case])) == CASES[case].get("apiKeys", {}).get("enabled", True)


def test_notes_show_no_key_and_warn_of_an_open_door() -> None:
    assert "sk-llava-0123456789" not in told(CASES["keys-given"])
    assert "everybody who can reach the port" in told(CASES["no-keys"])
    assert "everybody who can reach the port" not in told({})
    assert "ReadWriteOnce" in told({"persistence": {"enabled": True}})
    assert "converts or quantizes" in told({"settings": {"load_4bit": True}})
    assert "converts or quantizes" not in told({"settings": {"load_4bit": True}, "cache": {"enabled": True}})
    assert "in an emptyDir" not in told(CASES["image-volume"])
    assert "component=download" in told(CASES["fetch-job"])


def test_notes_say_what_the_network_policy_may_close() -> None:
    redis = {"redis": {"existingSecret": "llava-redis"}}
    assert "If Redis is elsewhere" in told(redis)
    assert "If the collector of traces or the hub" in told(
        {"settings": {"otlp_endpoint": "http://traces:4317"}, "hub": {"endpoint": "https://hub.internal"}}
    )
    for quiet in ({}, {**redis, "networkPolicy": {"enabled": False}}, CASES["autoscaling"]):
        assert "networkPolicy.egress" not in told(quiet)


class Server(BaseHTTPRequestHandler):
    """Two models, one of which says nothing where ``mute``; the key must be shown."""

    key = "sk-llava-0123456789abcdef"
    mute = False

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "one"}, {"id": "two"}]})

    def do_POST(self) -> None:
        body = ChatCompletionRequest.model_validate_json(self.rfile.read(int(self.headers["content-length"])))
        text = "" if self.server.mute and body.model == "two" else "A red circle."
        self.server.asked.append(body.model)
        self.reply({"choices": [{"message": {"role": "assistant", "content": text}}]})

    def reply(self, body: dict[str, Any]) -> None:
        allowed = self.headers["authorization"] == f"Bearer {self.key}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        listening.asked, listening.mute = [], False
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def ask(server: ThreadingHTTPServer, keys: Path) -> subprocess.CompletedProcess[str]:
    """The command of the test's pod, at ``server``."""
    container = only(objects(), "Pod")["spec"]["containers"][0]
    variables = {one["name"]: one["value"] for one in container["env"]}
    variables |= {
        "BASE_URLS": f"http://127.0.0.1:{server.server_port}/v1",
        "KEYS": str(keys),
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, *container["command"][1:]]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def test_pod_of_helm_test_asks_every_model(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "a-hash").write_text("sha256:" + "0" * 64)
    (tmp_path / "anne").write_text(Server.key)
    done = ask(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.asked == ["one", "two"]
    assert "A red circle." in done.stdout


def test_pod_of_helm_test_fails_where_a_model_says_nothing(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "anne").write_text(Server.key)
    server.mute = True
    done = ask(server, tmp_path)
    assert done.returncode == 1
    assert "two said nothing" in done.stderr


def test_pod_of_helm_test_fails_without_the_right_key(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "anne").write_text("sk-llava-another-key")
    done = ask(server, tmp_path)
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "sk-llava" not in done.stdout + done.stderr


def test_pod_of_helm_test_asks_where_clients_ask() -> None:
    for values in ({}, TWO_MODELS, {**TWO_MODELS, "router": {"enabled": False}}):
        found = objects(values)
        ports = {one["metadata"]["name"]: one["spec"]["ports"][0]["port"] for one in of_kind(found, "Service")}
        (urls,) = [
            one["value"] for one in only(found, "Pod")["spec"]["containers"][0]["env"] if one["name"] == "BASE_URLS"
        ]
        for url in urls.split():
            host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
            assert ports[host] == int(port)


def test_rays_scripts_are_scripts() -> None:
    group = only(objects(MULTI_NODE), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    leader = group["leaderTemplate"]["spec"]["containers"][0]["command"]
    worker = group["workerTemplate"]["spec"]["containers"][0]["command"]
    for command in (leader, worker):
        assert command[:4] == ["tini", "--", "/bin/sh", "-ec"]
        assert subprocess.run(["sh", "-n"], input=command[4], text=True, timeout=10).returncode == 0
        # Kubernetes would put a variable's value in its place, before the shell is asked.
        assert "$(" not in command[4]
    assert leader[5:] == ["llava-tiny-1.5"]
    python = leader[4].split("<<'END'\n")[1].split("\nEND\n")[0]
    compile(python, "leader", "exec")
    named = {one["name"] for one in group["leaderTemplate"]["spec"]["containers"][0]["env"]}
    assert named >= {"RAY_PORT", "RAY_JOIN_TIMEOUT_SECONDS", "VLLM_HOST_IP"}


def test_chart_carries_the_demos_image_and_the_dashboard() -> None:
    assert (CHART / "files" / "red-circle.png").read_bytes() == DEMO_PICTURE.read_bytes()
    (found,) = [one for one in of_kind(objects(CASES["dashboard"]), "ConfigMap") if "llava-api.json" in one["data"]]
    assert json.loads(found["data"]["llava-api.json"])["title"] == "llava-api"


def test_alerts_and_scaling_go_by_metrics_that_there_are() -> None:
    telemetry = pytest.importorskip("llava_api.telemetry.metrics")
    metrics = telemetry.Metrics({"version": "0"})
    metrics.publish_certificate(lambda: 0.0)
    page = metrics.page("")[0].decode()
    text = "\n".join(rendered({**CASES["rules"], **CASES["keda"]}).values())
    text += json.dumps(only(objects(CASES["autoscaling"]), "HorizontalPodAutoscaler"))
    named = {name.removesuffix("_bucket") for name in re.findall(r"\bllava_api_[a-z_]+", text)}
    assert len(named) > 5
    assert [name for name in named if name not in page] == []
