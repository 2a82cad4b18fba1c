"""The table of docs/deployment.md, "One replica of a 7B model", is what its formula gives with the inputs above it."""

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
COLUMNS = {"1.5": 1, "1.6": 2}


def rows(first: str) -> list[list[str]]:
    """The table whose first row starts with ``first``, without its heading."""
    lines = DOCUMENT[DOCUMENT.index(f"\n{first}") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(text: str) -> float:
    found = re.search(r"[0-9][0-9,.]*(?:e[0-9]+)?", text)
    assert found is not None, text
    return float(found[0].replace(",", ""))


def inputs(model: str) -> dict[str, float]:
    given = {row[0].split(",")[0]: row[COLUMNS[model]] for row in rows("| | LLaVA-1.5-7B, 336 px")}
    found = {name: number(given[name]) for name in "NPAVGWK"}
    found["MFU"], found["MBU"] = (float(part) for part in given["MFU"].split(", "))
    return found


def calculated(model: str, flops: float, speed: float, memory: float, tokens: float | None = None) -> tuple[float, ...]:
    """(seconds of the prefill, of decoding, answers at once)"""
    one = inputs(model)
    answer = tokens or one["G"]
    room = (0.9 * memory - one["W"] - 2e9) / (one["K"] * (one["P"] + answer))
    at_once = min(128, int(room))
    prefill = (2 * one["N"] * one["P"] + one["A"] + one["V"]) / (one["MFU"] * flops)
    read = one["W"] + at_once * one["K"] * (one["P"] + answer / 2)
    return prefill, answer * read / (at_once * one["MBU"] * speed), at_once


GPUS = {row[0]: row for row in rows("| GPU | F, TFLOP/s")}


@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpus_row_is_what_the_formula_gives(gpu: str) -> None:
    _, flops, speed, memory, times, rate, at_once, larger, price, cost = GPUS[gpu]
    card = (float(flops) * 1e12, float(speed) * 1e12, float(memory) * 1e9)
    prefill, decode, fits = calculated("1.5", *card)
    assert times == f"{1000 * prefill:.0f} + {1000 * decode:.0f}"
    assert int(at_once) == fits
    per_second = 1 / (prefill + decode)
    assert rate.strip("*") == (f"{per_second:.0f}" if per_second > 10 else f"{per_second:.1f}")
    assert larger == f"{1 / sum(calculated('1.6', *card)[:2]):.1f}"
    assert cost == f"{number(price) / 3600 / (0.6 * per_second) * 1e6:.0f}"


def test_answers_of_other_lengths() -> None:
    found = re.search(r"with 16 tokens the same card serves (\d+) requests/s, with 300 it serves (\d+)", DOCUMENT)
    assert found is not None
    for tokens, rate in ((16, found[1]), (300, found[2])):
        prefill, decode, _ = calculated("1.5", 989e12, 3.35e12, 80e9, tokens)
        assert f"{1 / (prefill + decode):.0f}" == rate
