"""Example images, drawn as those that the demo checkpoints were trained on."""

from importlib import resources

from llava_api.cli.conversation import data_url

EXAMPLES = {
    "three-shapes": "What is in this image?",
    "one-shape": "Is there a star?",
    "number": "What number is written?",
}
"""The name of an image -> the question about it, which is also the label of its button."""


def example_image(name: str) -> bytes:
    return resources.files("llava_api.cli.ui").joinpath("images", f"{name}.png").read_bytes()


def button_images() -> str:
    """CSS that shows each example's image on its button."""
    url = "#example-{}::before {{ background-image: url({}); }}"
    return "\n".join(url.format(name, data_url(example_image(name), "image/png")) for name in EXAMPLES)
