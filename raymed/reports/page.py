"""HTML pages that are one file: opened from disk or mailed, they ask nothing of any address."""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from raymed.reports.drawing import NO_SENTENCES, NO_WORDS, printable
from raymed.storage import AnyPath, user_output


def data_uri(pixels: np.ndarray, palette: np.ndarray | None = None) -> str:
    """A picture as the address of itself: an 8-bit PNG in base64.

    Args:
        pixels: uint8 [H, W]: grey, or numbers of the palette's colours.
        palette: uint8 [colours, 3], red, green, blue.
    """
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def write_page(path: AnyPath, template: str, **values: Any) -> None:
    """Fill in a template of this package and write the page, whole or not at all.

    Whatever the values hold is shown as text, never read as HTML; but for what is
    `markupsafe.Markup`, which the caller answers for.

    Args:
        path: of the HTML file.
        template: name of a file in ``templates/``.
        values: what the template asks for.

    Raises:
        UsageError: the file cannot be written.
    """
    templates = Environment(
        loader=PackageLoader("raymed.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    nothing = {"made_from": "", "no_words": NO_WORDS, "no_sentences": NO_SENTENCES}
    page = templates.get_template(template).render(nothing | values)
    with user_output(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
