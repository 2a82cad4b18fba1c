"""A page with every series that a server and a router have."""

from functools import cache

from llava_api.telemetry.metrics import STATES, Metrics
from llava_api.telemetry.record import RequestRecord
from llava_api.telemetry.router_metrics import RouterMetrics
from tests.support.metrics_page import Page, read_page


@cache
def exported() -> Page:
    pages = [read_page(metrics.page("")[0].decode()) for metrics in (server(), router())]
    return Page(pages[0].samples | pages[1].samples)


def server() -> Metrics:
    metrics = Metrics({"version": "1", "vllm": "1", "torch": "1", "python": "3"})
    metrics.serve_model(["tiny"], model="tiny", family="v1", image_mode="pad", version="1.5", format="hub")
    metrics.publish_certificate(lambda: 0.0)
    for state in STATES:
        metrics.state.labels(state)
    record = RequestRecord(method="POST", status=500, complete=True, cache_hits=1, cache_misses=1)
    metrics.begin(record)
    record.note_image(1, 1, 1)
    record.note_step("fetch", record.started, ok=True)
    record.note_step("decode", record.started, ok=True)
    record.note_prompt(5, [1], 1, 10, 1.0)
    record.end("/v1/chat/completions", "anne")
    metrics.end(record)
    return metrics


def router() -> RouterMetrics:
    metrics = RouterMetrics({"version": "1"})
    record = RequestRecord(method="POST", status=200, complete=True, model="tiny")
    metrics.begin(record)
    record.end("/v1/chat/completions", "anne")
    metrics.end(record)
    metrics.retries.labels("tiny").inc()
    metrics.backend_up.labels("tiny", "one").set(1)
    metrics.backend_requests.labels("one").set(0)
    return metrics
