"""Write the table of docs/home.md, what fits into which memory, from the plan that ``serve`` makes; ``--check`` fails
if it is stale.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.shapes import SEVEN, THIRTEEN, Shape, make_folder
from llava_api.chat.model import open_model
from llava_api.checkpoints.size import count_parameters
from llava_api.engine.cpu_plan import CheckpointFacts, CpuMachine, plan
from llava_api.errors import StartupError
from llava_api.settings import Settings
from tools.docs_page import DOCS, write

SIZES = (8, 16, 24, 32)
"""GiB."""
TAKEN = 1_500_000_000
"""Bytes that the system and other programs have."""
MACHINE = CpuMachine(None, tuple(range(8)), frozenset({"avx2", "avx512f"}))
FORMS = {"as published": ("float16 / bfloat16", 16), "`--load-8bit`": ("8 bit", 8), "`--load-4bit`": ("4 bit", 4)}
"""Flag -> (name of its size, bits)."""


def facts(shape: Shape, size: str, bits: int) -> CheckpointFacts:
    with tempfile.TemporaryDirectory() as name:
        checkpoint = open_model(str(make_folder(Path(name) / "m", shape)), ("m",), Settings()).checkpoint
        parameters = count_parameters(checkpoint)
    weights = parameters.memory_bytes()[size]
    return CheckpointFacts(
        stored_dtype="float16",
        context=checkpoint.context_length,
        parameters=parameters.total,
        cache_numbers=parameters.cached,
        weights=lambda dtype: weights,
        quantized={},
        bits=bits,
    )


def cell(gibibytes: int, checkpoint: CheckpointFacts) -> str:
    try:
        made = plan(replace(MACHINE, free=gibibytes * 2**30 - TAKEN), checkpoint, Settings())
    except StartupError:
        return "does not fit"
    return f"{made.context:,} tokens, {made.max_num_seqs} at once"


def table() -> str:
    rows = [f"| | {' | '.join(f'{size} GB' for size in SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for name, shape in (("7B", SEVEN), ("13B", THIRTEEN)):
        for form, (size, bits) in FORMS.items():
            checkpoint = facts(shape, size, bits)
            rows.append(f"| {name}, {form} | {' | '.join(cell(gibibytes, checkpoint) for gibibytes in SIZES)} |")
    return "\n".join(rows)


def main() -> None:
    write(DOCS / "home.md", "memory", table(), "tools.home_table")


if __name__ == "__main__":
    main()
