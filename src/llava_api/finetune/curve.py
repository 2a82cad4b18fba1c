"""The course of a training: ``log.jsonl``, one line for each step, and ``loss.png``, drawn from it."""

import json
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
PLOT = "loss.png"
SMOOTHED_SHARE = 0.05
"""Steps over which the plot's average goes, as a share of all."""


class Curve:
    def __init__(self, folder: Path, steps: int) -> None:
        """Continue the log after its first ``steps`` lines; later ones were written and not saved as weights."""
        self.folder = folder
        self.path = folder / LOG
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines[:steps]]
        if lines[steps:]:
            shortened = folder / f".{LOG}.partial"
            shortened.write_text("".join(f"{line}\n" for line in lines[:steps]), encoding="utf-8")
            shortened.replace(self.path)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def plot(self) -> None:
        """Draw each step's loss and their running average."""
        from matplotlib.figure import Figure

        steps = [line["step"] for line in self.lines]
        losses = [line["loss"] for line in self.lines]
        over = max(round(len(losses) * SMOOTHED_SHARE), 2)
        recent = [losses[max(end - over, 0) : end] for end in range(1, len(losses) + 1)]
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, color="0.75", label="each step")
        axes.plot(steps, [sum(values) / len(values) for values in recent], label=f"average of {over}")
        axes.set(xlabel="step", ylabel="loss")
        axes.legend()
        figure.savefig(self.folder / PLOT)
