"""What was found in training data, as text."""

from collections import Counter

from llava_api.finetune.check import Report

MOST_LISTED = 20
"""Faults, or ids, that are listed by name."""
BAR_COLUMNS = 40


def page(report: Report) -> str:
    lines = [f"{report.samples} samples with {report.images} different images"]
    if report.lengths:
        longest, name = report.longest
        lines += [f"{sum(report.lengths)} tokens; the longest sample has {longest} ({name})", ""]
        lines += [f"  {line}" for line in histogram(report.lengths)]
    notes = [f"{count} samples have {name}, which is not read" for name, count in report.unknown_fields.most_common()]
    repeated = [
        f"{len(places)} samples are called {name}: {', '.join(map(str, places[:5]))}{', ...' if places[5:] else ''}"
        for name, places in report.repeated_ids.items()
    ]
    for title, sentences in (("Notes", [*notes[:MOST_LISTED], *shortened(repeated)]), ("Faults", faults(report))):
        if sentences:
            lines += ["", f"{title}:", *[f"  {sentence}" for sentence in sentences]]
    return "\n".join([*lines, "", verdict(report)])


def faults(report: Report) -> list[str]:
    return shortened([str(fault) for fault in report.faults])


def shortened(sentences: list[str]) -> list[str]:
    left = len(sentences) - MOST_LISTED
    return [*sentences[:MOST_LISTED], f"and {left} more"] if left > 0 else sentences


def verdict(report: Report) -> str:
    if not report.faults:
        return "No faults."
    return f"{len(report.faults)} faults; {len(report.good)} of {report.samples} samples can be learned from."


def histogram(lengths: list[int]) -> list[str]:
    """One line for each power of two that has samples: how many have up to that many tokens."""
    bins = Counter((length - 1).bit_length() for length in lengths)
    most = max(bins.values())
    width = len(str(2 ** max(bins)))
    return [
        f"up to {2**power:{width}} tokens  {bins[power]:>7}  {'#' * round(bins[power] / most * BAR_COLUMNS)}".rstrip()
        for power in range(min(bins), max(bins) + 1)
    ]
