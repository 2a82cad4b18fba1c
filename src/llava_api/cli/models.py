"""Which checkpoint a command line means: a folder, a hub id, or the name of a bundled demo."""

from importlib import resources
from pathlib import Path

DEMO = "llava-tiny-1.5"
MODEL_HELP = "checkpoint folder, hub id, or a bundled demo: llava-tiny-1.5 (the default), llava-tiny-1.6"


def demo_folder() -> Path:
    return Path(str(resources.files("llava_api") / "demo"))


def find_model(model: str) -> str:
    """The bundled folder if ``model`` is the name of a demo, else ``model``."""
    if "/" not in model and model in {folder.name for folder in demo_folder().iterdir() if folder.is_dir()}:
        return model if Path(model).is_dir() else str(demo_folder() / model)
    return model
