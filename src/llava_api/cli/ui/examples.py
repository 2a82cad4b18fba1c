"""Example images, drawn as those that the demo checkpoints were trained on."""

import base64
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Example:
    name: str
    question: str
    """Also the button's label."""

    @property
    def element(self) -> str:
        """Its id on the page."""
        return f"example-{self.name}"

    def data(self) -> bytes:
        return resources.files("llava_api.cli.ui").joinpath("images", f"{self.name}.png").read_bytes()


EXAMPLES = (
    Example("three-shapes", "What is in this image?"),
    Example("one-shape", "Is there a star?"),
    Example("number", "What number is written?"),
)


def style_of(examples: tuple[Example, ...]) -> str:
    """CSS that shows each example's image on its button."""
    rules = [
        f"#{example.element}::before {{ background-image: "
        f"url(data:image/png;base64,{base64.b64encode(example.data()).decode()}); }}"
        for example in examples
    ]
    return "\n".join(rules)
