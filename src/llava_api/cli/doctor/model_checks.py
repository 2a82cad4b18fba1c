"""Whether the model's folder exists, is complete, and fits into memory."""

from pathlib import Path

from llava_api.chat.model import ServedModel, open_model
from llava_api.checkpoints.whole import Weights, check_whole, unfinished_downloads
from llava_api.cli.doctor.finding import Finding, fail, ok, warn
from llava_api.cli.flags import find_model
from llava_api.cli.start_checks import check_gpu_kernels, check_gpu_memory, cpu_plan, weight_bytes
from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.units import readable_size


def model_findings(name: str, settings: Settings, on_gpu: bool | None) -> list[Finding]:
    model = find_model(name)
    folder = Path(model).expanduser()
    try:
        if not folder.exists():
            return [not_here(model)]
    except OSError as error:
        return [fail("model", f"{model[:80]}: {error.strerror}", "give the path of a folder or a hub id")]
    try:
        opened = open_model(model, (name,), settings)
        opened.to_load()
    except StartupError as error:
        return [fail("model", str(error), "check that all files were copied; llava-api inspect says what it is")]
    checkpoint, pair = opened.checkpoint, opened.checkpoint.gguf
    made = [ok("model", f"{checkpoint.vision}, {checkpoint.format} format, prompts of {opened.family.name}")]
    if checkpoint.format == "original LoRA":
        return made
    if pair is not None:
        made.append(ok("weights", f"{pair}, complete; read as {pair.assumed}"))
        return [*made, *room(opened, None, settings, bool(on_gpu))]
    try:
        weights = check_whole(folder)
    except StartupError as error:
        return [*made, fail("weights", str(error), "download it again; git lfs pull for a git checkout")]
    made.append(complete_weights(folder, weights))
    return [*made, *room(opened, weights if checkpoint.format == "hub" else None, settings, bool(on_gpu))]


def not_here(model: str) -> Finding:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        return fail("model", f"there is no folder {model}", "give the path of a checkpoint folder or a hub id")
    return warn(
        "model",
        f"{model} is a hub id, which is not looked up",
        "the first start downloads it; with HF_HUB_OFFLINE=1 only downloaded models are served",
    )


def complete_weights(folder: Path, weights: Weights) -> Finding:
    text = f"{weights.files} files, {readable_size(weights.bytes)}, complete"
    left = unfinished_downloads(folder)
    if left:
        return warn("weights", f"{text}; {len(left)} unfinished downloads beside them", f"remove {left[0].name}")
    return ok("weights", text)


def room(model: ServedModel, weights: Weights | None, settings: Settings, on_gpu: bool) -> list[Finding]:
    """Whether it fits into memory, and what a start without a GPU would choose."""
    settings = settings.model_copy(update={"check_memory": True})
    try:
        if on_gpu:
            needed = weight_bytes(model, weights, settings, settings.dtype)
            check_gpu_memory(needed, settings)
            check_gpu_kernels(model)
            return [ok("room", f"the weights take {readable_size(needed)}: they fit")]
        plan = cpu_plan(model, weights, settings)
    except StartupError as error:
        found, _, advice = str(error).partition(": ")[2].rpartition(": ")
        return [fail("room", found, advice)]
    return [ok("room", sentence) for sentence in plan.sentences] if plan is not None else []
