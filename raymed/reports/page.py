"""Self-contained HTML pages: opened from disk or mailed, they request nothing from any address."""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.reports.drawing import NO_SENTENCES, NO_WORDS, printable
from raymed.storage import AnyPath, user_output


def data_uri(pixels: np.ndarray, palette: np.ndarray | None = None) -> str:
    """A picture as a data URI: an 8-bit PNG in base64.

    Args:
        pixels: uint8 [H, W]: grey values, or indices into the palette.
        palette: uint8 [colours, 3]: red, green, blue.
    """
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def write_page(path: AnyPath, template: str, **values: Any) -> None:
    """Render a template of this package and write the page atomically.

    All values are shown as text and never interpreted as HTML, except `markupsafe.Markup`, whose
    safety is the caller's responsibility.

    Args:
        path: The HTML file.
        template: The name of a file in ``templates/``.
        values: The template's variables.

    Raises:
        UsageError: The file cannot be written.
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
    common = {
        "made_from": "",
        "no_words": NO_WORDS,
        "no_sentences": NO_SENTENCES,
        "not_for_clinical_use": NOT_FOR_CLINICAL_USE,
    }
    page = templates.get_template(template).render(common | values)
    with user_output(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
