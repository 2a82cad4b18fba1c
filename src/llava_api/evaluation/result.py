"""What a scorer returns, beside what was published."""

from dataclasses import dataclass, field

PAPER = "LLaVA-1.5, arXiv 2310.03744"


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table; in percent except for MME's points."""

    name: str
    value: float
    published: tuple[float, float] | None = None
    """LLaVA-1.5's scores with 7B and 13B parameters."""


@dataclass(frozen=True, slots=True)
class Result:
    scores: list[Score]
    questions: int
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    note: str = ""
    """What to know before comparing with the published scores."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def percent(values: list[float]) -> float:
    return 100 * mean(values)


def overall(groups: dict[str, list[float]]) -> float:
    return percent([value for values in groups.values() for value in values])


def by_group(groups: dict[str, list[float]]) -> list[Score]:
    return [Score(name, percent(values)) for name, values in sorted(groups.items())]
