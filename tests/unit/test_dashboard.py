"""The Grafana dashboard: sane as a document, and every series of ours in it is one that the server has.

vLLM's are looked for in tests/engine/test_engine_metrics.py, where there is an engine.
"""

import re

import pytest

from tests.support.dashboard import dashboard, expressions, panels, series_used
from tests.support.exported import exported

LABELS_IN_QUERIES = ("job", "instance", "le")
"""Those that Prometheus and its histograms add."""


def test_every_series_of_ours_is_there() -> None:
    page = exported()
    used = {name for name in series_used() if not name.startswith("vllm:")}
    assert len(used) > 20
    assert used <= page.names()


def test_every_label_of_ours_is_there() -> None:
    page = exported()
    for expression in expressions():
        for name, given in re.findall(r"(llava_api_\w+)\{([^}]*)\}", expression):
            has = {label for found, labels in page.samples if found == name for label, _ in labels}
            asked = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", given))
            assert asked - set(LABELS_IN_QUERIES) <= has, expression
        for name, label in re.findall(r"label_values\((llava_api_\w+)[^,]*, (\w+)\)", expression):
            if label not in LABELS_IN_QUERIES:
                assert page.labels(name, label)


def test_panels_are_whole() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_stand_beside_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]


def test_the_model_is_chosen_everywhere() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for name, given in re.findall(r"\b((?:llava_api_|vllm:)\w+)\{([^}]*)\}", target["expr"]):
                assert re.search(r'\bmodel(_name)?=~"\$model"', given), (panel["title"], name)


def test_variables_are_there() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    used = {name for expression in expressions() for name in re.findall(r"\$(\w+)", expression)}
    assert used - {"__rate_interval"} <= variables.keys()


@pytest.mark.parametrize("expression", expressions())
def test_brackets_close(expression: str) -> None:
    outside = re.sub(r'"[^"]*"', "", expression)
    for opening, closing in ("()", "{}", "[]"):
        assert outside.count(opening) == outside.count(closing)
