"""The panel "What the model saw": tiles, padding and token counts, drawn as HTML and SVG from ``/v1/explain``.

All that the server says is shown as text, never as markup.
"""

from collections.abc import Sequence
from html import escape

from llava_api.cli.ui.open_pages import AttachedImage
from llava_api.protocol.explain import ExplainedImage, Explanation
from llava_api.vision.families import LAYOUTS
from llava_api.vision.geometry import Size, fit_within, square_size

EMPTY = '<p class="quiet">Ask about an image to see what the model is shown of it.</p>'
UNKNOWN = (
    '<p class="quiet">This server does not say what its model is shown: it lacks <code>/v1/explain</code>, '
    "as <code>llava-api serve</code> has.</p>"
)


def panel(explanation: Explanation | None, attached: Sequence[AttachedImage]) -> str:
    if explanation is None:
        return UNKNOWN
    known = len(attached) == len(explanation.images)
    figures = [
        image_figure(number, image, attached[number - 1] if known else None)
        for number, image in enumerate(explanation.images, start=1)
    ]
    # In one line, because a blank line would end the HTML (see ``text``).
    return "".join([token_table(explanation), *figures, reasons(explanation)])


def problem(message: str) -> str:
    return f'<p class="quiet">{text(message)}</p>'


def token_table(e: Explanation) -> str:
    rows = [("Text", e.text_tokens)]
    rows += [(f"Image {number}", image.image_tokens) for number, image in enumerate(e.images, start=1)]
    rows += [("Prompt, all together", e.prompt_tokens), ("Left for the answer", e.context_left)]
    rows += [("Longest prompt with answer", e.context_length)]
    lines = "".join(f'<tr><th scope="row">{name}</th><td>{count:,}</td></tr>' for name, count in rows)
    return f'<table class="tokens"><caption>Tokens</caption><tbody>{lines}</tbody></table>'


def image_figure(number: int, image: ExplainedImage, attached: AttachedImage | None) -> str:
    side = image.pixels_shape[-1] if image.pixels_shape else 0
    size = (image.shown_width, image.shown_height)
    across, down = [*image.grid, 1, 1][:2]
    tiled = len(image.pixels_shape) == 4
    drawings = []
    if side > 0 and min(size) > 0 and 0 < across * down <= 400:
        url = attached.thumbnail.url if attached is not None else ""
        if tiled:
            drawings.append(squeezed(url, side, f"Image {number}, squeezed into one tile"))
        if not tiled or image.pixels_shape[0] > 1:
            drawings.append(in_tiles(url, image, number))
    layout = LAYOUTS.get(image.mode)
    pixels = f"{side} &times; {side} pixels"
    tiles = f"one tile of {pixels}"
    if tiled and image.detail == "low":
        tiles += " (low detail)"
    elif tiled:
        tiles = f"{across} &times; {down} tiles of {pixels}, and the whole image as one"
    turned = "" if image.orientation == 1 else f", turned upright (EXIF orientation {image.orientation})"
    return (
        f'<figure class="seen"><div class="drawings">{"".join(drawings)}</div><figcaption>'
        f"<b>Image {number}</b>: {text(image.format)}, {image.width} &times; {image.height}{turned}; "
        f"{text(layout.description if layout is not None else image.mode)}: {tiles}; "
        f"<b>{image.image_tokens:,} tokens</b></figcaption></figure>"
    )


def placed(cut: bool, size: Size, canvas: Size) -> tuple[Size, tuple[float, float]]:
    """(width, height) of an image on its tiles, and its upper left corner. ``cut``: what does not fit is cut off."""
    width, height = square_size(size, canvas[0]) if cut else fit_within(size, canvas)
    return (width, height), ((canvas[0] - width) / 2, (canvas[1] - height) / 2)


def in_tiles(url: str, image: ExplainedImage, number: int) -> str:
    """The image where the model has it, with padding around it (black in a grid, else the mean colour) and the cuts."""
    across, down = image.grid[:2]
    side = image.pixels_shape[-1]
    canvas = (across * side, down * side)
    tiled = len(image.pixels_shape) == 4
    layout = LAYOUTS.get(image.mode)
    cut = not tiled and layout is not None and layout.crops
    (width, height), (left, top) = placed(cut, (image.shown_width, image.shown_height), canvas)
    cuts = [f'<path d="M{x * side} 0V{canvas[1]}"/>' for x in range(1, across)]
    cuts += [f'<path d="M0 {y * side}H{canvas[0]}"/>' for y in range(1, down)]
    inner = (
        f'<rect class="{"black" if tiled else "mean"}" width="{canvas[0]}" height="{canvas[1]}"/>'
        f"{image_tag(url, left, top, width, height)}"
        f'<g class="cuts">{"".join(cuts)}</g>'
    )
    return drawing(inner, canvas, f"Image {number} in its tiles")


def squeezed(url: str, side: int, name: str) -> str:
    return drawing(image_tag(url, 0, 0, side, side), (side, side), name, "whole")


def image_tag(url: str, left: float, top: float, width: float, height: float) -> str:
    place = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
    if not url:
        return f'<rect class="unknown" {place}/>'
    return f'<image href="{escape(url)}" {place} preserveAspectRatio="none"/>'


def drawing(inner: str, canvas: Size, name: str, kind: str = "tiles") -> str:
    return (
        f'<svg class="{kind}" role="img" aria-label="{name}" viewBox="0 0 {canvas[0]} {canvas[1]}" '
        f'style="aspect-ratio:{canvas[0]}/{canvas[1]}">{inner}</svg>'
    )


def reasons(e: Explanation) -> str:
    return (
        "<details><summary>The prompt, word for word</summary>"
        f"<pre>{text(e.prompt)}</pre></details>"
        f'<p class="quiet">LLaVA-{text(e.version)}; prompt family {text(e.family)}: {text(e.family_reason)}. '
        f"Image mode {text(e.image_mode)}: {text(e.image_mode_reason)}.</p>"
    )


def text(said: str) -> str:
    """Escaped, in one line: after a blank line the page would read Markdown again, with links to scripts in it."""
    return escape(said).replace("\n", "&#10;").replace("\r", "&#13;")
