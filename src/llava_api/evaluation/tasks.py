"""The benchmarks that can be scored, by the name on the command line."""

from collections.abc import Callable

from llava_api.evaluation.choices import scienceqa, seed
from llava_api.evaluation.files import Sources
from llava_api.evaluation.mmbench import mmbench
from llava_api.evaluation.result import Result
from llava_api.evaluation.vqa import gqa, textvqa, vizwiz, vqav2
from llava_api.evaluation.yes_no import mme, pope

TASKS: dict[str, tuple[Callable[[Sources], Result], str]] = {
    "pope": (pope, "POPE: the folder with coco_pope_*.json, or one of these files"),
    "vqav2": (vqav2, "VQAv2: v2_mscoco_val2014_annotations.json"),
    "gqa": (gqa, "GQA: testdev_balanced_questions.json"),
    "textvqa": (textvqa, "TextVQA: TextVQA_0.5.1_val.json"),
    "scienceqa": (scienceqa, "ScienceQA: the folder with problems.json and pid_splits.json"),
    "vizwiz": (vizwiz, "VizWiz: val.json of the VQA task"),
    "mme": (mme, "MME: MME_Benchmark_release_version, or eval_tool/Your_Results"),
    "mmbench": (mmbench, "MMBench: mmbench_dev_20230712.tsv"),
    "seed": (seed, "SEED-Bench: SEED-Bench.json"),
}
"""The function that computes the scores, and its annotations."""
