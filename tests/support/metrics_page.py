"""A page of /metrics -> its samples, read by prometheus_client's own parsers."""

from dataclasses import dataclass

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True, slots=True)
class Page:
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float | None:
        """Of the one series with these labels; None if there is no such series."""
        wanted = set(labels.items())
        found = [value for (its, has), value in self.samples.items() if its == name and wanted <= has]
        assert len(found) < 2, f"several series of {name} have these labels"
        return found[0] if found else None

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def labels(self, name: str, label: str) -> set[str]:
        """Every value that the label has."""
        return {dict(labels)[label] for found, labels in self.samples if found == name}

    def total(self, name: str, **labels: str) -> float:
        """Of all series that have these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)


def read_page(text: str, openmetrics: bool = False) -> Page:
    """Fails for a series that is there twice, as a scrape would."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in read_openmetrics(text) if openmetrics else read_text(text):
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in samples, series
            samples[series] = sample.value
    return Page(samples)
