"""The metrics of a fleet: a router's, the state of its models, and those of their servers with the model as a label."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import Gauge, Metric
from prometheus_client.parser import text_string_to_metric_families

from llava_api.telemetry.metrics import page
from llava_api.telemetry.router_metrics import RouterMetrics

PROCESS = ("process_", "python_")


class Families:
    """What prometheus_client writes as a page."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = {family.name: family for family in families}

    def add(self, model: str, text: str) -> None:
        """The page of a model's server, without what concerns its process. Samples that name a model keep its name."""
        for family in text_string_to_metric_families(text):
            if family.name.startswith(PROCESS):
                # A process that is started again and again would look like one that crashes.
                continue
            known = self.families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [sample._replace(labels={"model": model} | sample.labels) for sample in family.samples]

    def collect(self) -> Iterable[Metric]:
        return self.families.values()


class FleetMetrics(RouterMetrics):
    def __init__(self, versions: Mapping[str, str | None]) -> None:
        super().__init__(versions)
        self.server_pages: Callable[[], Mapping[str, str]] = dict
        """Model -> the metrics of its server, in Prometheus's text format. Called in a thread."""
        gauge = partial(Gauge, registry=self.registry)
        self.model_state = gauge("llava_api_fleet_model_state", "1 for the state of the model.", ("model", "state"))
        self.model_waiting = gauge("llava_api_fleet_waiting_requests", "Requests that wait for the model.", ("model",))
        failing = "1 from a failed load, or the end of its server, until the model is ready again."
        self.model_failing = gauge("llava_api_fleet_model_failing", failing, ("model",))

    def page(self, accept: str) -> tuple[bytes, str]:
        families = Families(self.registry.collect())
        for model, text in self.server_pages().items():
            families.add(model, text)
        return page(families, accept)
