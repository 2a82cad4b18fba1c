"""The Helm chart, rendered by Helm's own library; no cluster and no helm program.

``python -m tests.support.chart`` writes the golden renders anew: read the difference before it is committed.
"""

import base64
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import yaml
from helm_python import Chart
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "llava-api"
EXAMPLES = {path.stem: path for path in sorted((ROOT / "helm" / "examples").glob("*.yaml"))}
GOLDEN = ROOT / "tests" / "chart" / "golden"
CRDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests" / "chart" / "crds").glob("*.json")}
VERSIONS = sorted({version for version in kubernetes_validate.utils.all_versions() if version >= "1.30"})
"""Versions of Kubernetes, from the oldest that the chart takes to the newest that kubernetes-validate knows."""

# It reads a megabyte of definitions for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

Object = dict[str, Any]


@functools.cache
def loaded() -> Chart:
    return Chart.load(CHART)


def rendered(values: Object | None = None, name: str = "llava", namespace: str = "ai") -> dict[str, str]:
    """File -> text, of the files that hold anything. The same each time, what the chart draws by lot too."""
    return dict(rendered_once(json.dumps(values or {}), name, namespace))


@functools.cache
def rendered_once(values: str, name: str, namespace: str) -> dict[str, str]:
    files = loaded().render(json.loads(values), name=name, namespace=namespace)
    return {path.removeprefix("llava-api/"): text for path, text in sorted(files.items()) if text.strip()}


def example(name: str) -> Object:
    return yaml.safe_load(EXAMPLES[name].read_text(encoding="utf-8"))


def objects(values: Object | None = None, name: str = "llava", namespace: str = "ai") -> list[Object]:
    found: list[Object] = json.loads(objects_once(json.dumps(values or {}), name, namespace))
    return found


@functools.cache
def objects_once(values: str, name: str, namespace: str) -> str:
    """The objects as JSON, which is read many times faster than YAML."""
    files = rendered_once(values, name, namespace)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return json.dumps([one for text in texts for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one])


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def only(found: list[Object], kind: str) -> Object:
    (one,) = of_kind(found, kind)
    return one


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, or the template of one."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def settings(self) -> dict[str, str]:
        """The variables of its first container that are no secrets, as the process will see them."""
        variables = self.spec["containers"][0].get("env", [])
        return {one["name"]: one["value"].replace("$$(", "$(") for one in variables if "value" in one}


def pods(found: list[Object]) -> Iterator[Pod]:
    for one in found:
        if one["kind"] == "Pod":
            yield Pod(one, one["metadata"]["labels"], one["spec"])
        for template in templates(one):
            yield Pod(one, template["metadata"]["labels"], template["spec"])


def templates(one: Object) -> list[Object]:
    if one["kind"] in ("Deployment", "Job"):
        return [one["spec"]["template"]]
    if one["kind"] == "LeaderWorkerSet":
        group = one["spec"]["leaderWorkerTemplate"]
        return [group["leaderTemplate"], group["workerTemplate"]]
    return []


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a selector, as a map or with matchLabels and matchExpressions, takes these labels."""
    if not selector.keys() & {"matchLabels", "matchExpressions"}:
        selector = {"matchLabels": selector}
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions), "only In is known here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def check(one: Object, version: str) -> None:
    """Raises ValidationError if Kubernetes, or the object's own definition, would not take it."""
    check_once(json.dumps(one), version)


@functools.cache
def check_once(text: str, version: str) -> None:
    """Most objects of a case are those of other cases too."""
    one = json.loads(text)
    if one["kind"] not in CRDS:
        kubernetes_validate.validate(one, version, strict=True)
        return
    Draft202012Validator(CRDS[one["kind"]]).validate(one)
    for part in parts(one):
        kubernetes_validate.validate(part, version, strict=True)


def parts(one: Object) -> Iterator[Object]:
    """What a custom object has of Kubernetes' own, as objects of Kubernetes'."""
    for template in templates(one):
        spec = {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "part"}, "spec": spec}
    if one["kind"] == "ScaledObject":
        behavior = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        target = {"scaleTargetRef": {"kind": "Deployment", "name": "part"}, "maxReplicas": 1, "behavior": behavior}
        yield {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {}, "spec": target}


def golden(name: str) -> str:
    """An example as one text. What is random in it is blanked, and so is the dashboard, which is compared elsewhere."""
    text = "\n".join(f"# {path}\n{content.strip()}\n" for path, content in rendered(example(name)).items())
    text = re.sub(r"(?m)^(  llava-api.json: ).*$", r"\1DASHBOARD", text)
    text = re.sub(r"(?m)^(  (?:master-key|default): ).*$", r"\1RANDOM", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def main() -> None:
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name in EXAMPLES:
        (GOLDEN / f"{name}.yaml").write_text(golden(name), encoding="utf-8")


if __name__ == "__main__":
    main()
