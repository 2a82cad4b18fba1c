"""The turns of benchmarks/home.py -> Markdown. ``python -m benchmarks.home_report results.json`` makes it again."""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
COLUMNS = {
    "ready_seconds": ("ready, s", 1),
    "memory_ready_gb": ("memory when ready, GB", 1),
    "memory_end_gb": ("at the end, GB", 1),
    "text_seconds": ("first token, text, s", 2),
    "image_seconds": ("first token, image, s", 2),
    "follow_up_seconds": ("follow-up on it, s", 2),
    "tokens_per_second_1": ("tokens/s, 1 stream", 2),
    "tokens_per_second_4": ("tokens/s, 4 streams", 2),
}
PAIRS = (
    ("ours 8bit", "llama.cpp Q8_0", {"image_seconds": 0.3, "tokens_per_second_1": 1.3, "tokens_per_second_4": 2.5}),
    ("ours 4bit", "llama.cpp Q4_K_M", {"image_seconds": 0.5, "tokens_per_second_1": 0.95, "tokens_per_second_4": 1.2}),
)
"""Ours, theirs, and the bars of ours / theirs: at most for seconds, at least for tokens/s."""
LINEAR, TOWER = 6_476_005_376, 303_507_456
"""Parameters of the text model's linear layers, and of the vision tower. A token takes two operations with each."""
IMAGE_TOKENS = 576
TINY = " A tiny model: figures mean nothing."


def medians(found: Json) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(one["name"] for one in found["turns"])
    return {
        name: {
            field: statistics.median(one[field] for one in found["turns"] if one["name"] == name)
            for field in [*COLUMNS, "streamed_bytes"]
        }
        for name in names
    }


def main_table(found: Json, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " | turns |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, row in rows.items():
        cells = [f"{row[field]:.{digits}f}" for field, (_, digits) in COLUMNS.items()]
        yield f"| {name} | {' | '.join(cells)} | {sum(one['name'] == name for one in found['turns'])} |"


def ratio_table(rows: dict[str, dict[str, float]]) -> Iterator[str]:
    pairs = [pair for pair in PAIRS if pair[0] in rows and pair[1] in rows]
    if not pairs:
        return
    yield "\n| ours / llama.cpp | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for mine, theirs, bars in pairs:
        cells = []
        for field in COLUMNS:
            ratio = rows[mine][field] / rows[theirs][field]
            bar = bars.get(field)
            least = field.startswith("tokens")
            met = bar is None or (ratio >= bar if least else ratio <= bar)
            wanted = "" if bar is None else f" ({'>=' if least else '<='} {bar:g}{'' if met else ', **missed**'})"
            cells.append(f"{ratio:.2f}{wanted}")
        yield f"| {mine} / {theirs} | {' | '.join(cells)} |"


def limit_table(found: Json, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """Shares of what the machine could do at most."""
    limits = {name: statistics.median(one[name] for one in found["limits"]) for name in found["limits"][0]}
    fastest = max(limits["int8_per_second"], limits["bfloat16_per_second"])
    yield (
        f"\nAll cores together read {limits['bytes_per_second'] / 1e9:.1f} GB/s, and multiply "
        f"{limits['int8_per_second'] / 1e12:.2f} Tera-operations/s in int8 and "
        f"{limits['bfloat16_per_second'] / 1e12:.2f} in bfloat16 (median of {len(found['limits'])} measurements)."
    )
    yield "\n| | decoding, of the memory's bandwidth | prompt with an image, of the fastest multiplication |"
    yield "|---|---|---|"
    for name, row in rows.items():
        tokens = statistics.median(one["prompt_tokens"]["image"] for one in found["turns"] if one["name"] == name)
        decoding = row["streamed_bytes"] * row["tokens_per_second_1"] / limits["bytes_per_second"]
        operations = 2 * (LINEAR * tokens + TOWER * IMAGE_TOKENS)
        yield f"| {name} | {decoding:.0%} | {operations / row['image_seconds'] / fastest:.0%} |"


def agreement(scores: list[list[float]], reference: list[list[float]]) -> tuple[int, float, float]:
    """(places with the same likeliest token, mean and largest difference of the log-probabilities)."""
    pairs = list(zip(scores, reference, strict=True))
    differences = [abs(mine[1] - theirs[1]) for mine, theirs in pairs]
    return sum(mine[0] == theirs[0] for mine, theirs in pairs), statistics.mean(differences), max(differences)


def fidelity_table(found: Json) -> Iterator[str]:
    scored = {one["name"]: one["scores"] for one in found["turns"] if "scores" in one}
    reference = scored.pop("ours 16bit", None)
    if reference is None or not scored:
        return
    yield (
        f"\nBeside 16 bit, {len(reference)} places of three texts and of an answer about an image (random weights, "
        "whose likeliest tokens are hardly ahead of others):\n"
    )
    yield "| | equal likeliest tokens | difference of the text's log-probabilities, mean | largest |\n|---|---|---|---|"
    for name, places in scored.items():
        equal, mean, largest = agreement(places, reference)
        yield f"| {name} | {equal} of {len(places)} | {mean:.2g} | {largest:.2g} |"


def markdown(found: Json) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    lines = [
        f"{machine['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{versions}, llama.cpp {found['llama.cpp']}.{TINY if found['tiny'] else ''}\n"
    ]
    rows = medians(found)
    if rows:
        lines += main_table(found, rows)
        lines += ratio_table(rows)
        if not found["tiny"]:
            lines += limit_table(found, rows)
        lines += fidelity_table(found)
    for precision, cost in found["made"].items():
        lines.append(f"\nQuantizing to {precision}: {cost['seconds']} s, {cost['peak_gb']} GB with mapped files.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
