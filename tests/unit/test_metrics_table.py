"""The table of series in docs/operations.md is that of the server, names and labels."""

import re
from pathlib import Path

from llava_api.telemetry.metrics import Metrics

ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|([^|]*)\|", re.MULTILINE)
TEXT = Path("docs/operations.md").read_text(encoding="utf-8")


def documented() -> dict[str, str]:
    table = TEXT.split("| series | labels | meaning |")[1].split("\n\n")[0]
    return {name: labels.strip() for names, labels in ROW.findall(table) for name in re.findall(r"`(\w+)`", names)}


def test_every_series_is_documented_with_its_labels() -> None:
    metrics = Metrics({"version": "1"})
    metrics.publish_certificate(lambda: 0.0)
    table = documented()
    names = metrics.registry._names_to_collectors
    ours = {name.removeprefix("llava_api_"): found for name, found in names.items() if name.startswith("llava_api_")}
    assert table.keys() <= ours.keys()
    collectors = {id(found): found for found in ours.values()}
    assert {id(ours[name]) for name in table} == collectors.keys(), "a series is missing"
    for name, labels in table.items():
        has = getattr(ours[name], "_labelnames", ())
        if not name.endswith("_info"):
            assert set(has) == set(filter(None, labels.split(", "))), name
