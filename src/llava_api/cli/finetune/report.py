"""What was found in training data, as text."""

from collections import Counter

from llava_api.finetune.check import Report

MOST_LISTED = 20
"""Faults, or ids, that are listed by name."""
MOST_PLACES = 5
BAR_COLUMNS = 40


def page(report: Report) -> str:
    lines = [f"samples  {report.samples}", f"images   {report.images} files"]
    if report.lengths:
        longest, name = report.longest
        lines += [f"tokens   {sum(report.lengths)}; the longest sample has {longest} ({name})", ""]
        lines += [f"  {line}" for line in histogram(report.lengths)]
    unread = [
        f"{name}: in {number} of {report.samples} samples" for name, number in report.unknown_fields.most_common()
    ]
    repeated = [f"id {name}: samples {places_text(places)}" for name, places in report.repeated_ids.items()]
    for title, sentences in (
        ("Fields that have no effect", unread),
        ("Repeated ids", repeated),
        ("Faults", [str(fault) for fault in report.faults]),
    ):
        if sentences:
            lines += ["", f"{title}: {len(sentences)}", *[f"  {sentence}" for sentence in shortened(sentences)]]
    return "\n".join([*lines, "", verdict(report)])


def places_text(places: list[int]) -> str:
    return ", ".join([*map(str, places[:MOST_PLACES]), *(["..."] if places[MOST_PLACES:] else [])])


def shortened(sentences: list[str]) -> list[str]:
    left = len(sentences) - MOST_LISTED
    return [*sentences[:MOST_LISTED], f"and {left} more"] if left > 0 else sentences


def verdict(report: Report) -> str:
    if not report.faults:
        return "No faults."
    return f"{len(report.good)} of {report.samples} samples can be learned from."


def histogram(lengths: list[int]) -> list[str]:
    """One line for each power of two that has samples: how many have up to that many tokens."""
    bins = Counter((length - 1).bit_length() for length in lengths)
    most = max(bins.values())
    width = len(str(2 ** max(bins)))
    return [
        f"up to {2**power:{width}} tokens  {bins[power]:>7}  {'#' * round(bins[power] / most * BAR_COLUMNS)}".rstrip()
        for power in range(min(bins), max(bins) + 1)
    ]
