"""Source: PEIR Gross (the Gross sub-collections of pathology in the PEIR digital library)."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.sources.table import examples
from raymed.data.sources.table_files import read_text
from raymed.data.text import one_sentence
from raymed.errors import UsageError

IMAGES_FOLDER = "peir_gross_images"
CAPTIONS_JSON = "peir_gross_captions.json"
CAPTIONS_TSV = "peir_gross.tsv"


def read(folder: Path, images: Path | None = None) -> Iterator[Example | Rejected]:
    """Yield every pair of an image and its caption, in the order of the file of captions.

    The public downloader (bioCaption) writes the captions twice. Where both files lie, the JSON
    is taken: a caption with a line break or a tab is whole only there, and a download that was
    interrupted and taken up again renews only that one.

    A caption is one sentence, as the paper treats it, whatever full stops are in it: they end
    abbreviations and remarks ("Dr. Smith", "excellent example."). Its words are those of the same
    preprocessing as any report's. The tags are its words among the 1,000 most frequent of all
    captions, those of missing images included. Every image is a study of its own: the captions
    do not say which images show one specimen.

    Args:
        folder: holds ``peir_gross_captions.json``, an object of image name -> caption, or
            ``peir_gross.tsv``, lines of image name, tab and caption.
        images: folder of the images; by default ``peir_gross_images`` in ``folder``.

    Raises:
        UsageError: a folder is missing, or there are no captions in either form.
    """
    folder = Path(folder)
    images = folder / IMAGES_FOLDER if images is None else Path(images)
    if not folder.is_dir():
        raise UsageError(f"{folder}: the folder does not exist")
    rejected: list[Rejected] = []
    if (folder / CAPTIONS_JSON).is_file():
        captions = _read_json(folder / CAPTIONS_JSON)
    elif (folder / CAPTIONS_TSV).is_file():
        captions, rejected = _read_tsv(folder / CAPTIONS_TSV)
    else:
        raise UsageError(
            f"{folder}: no captions there: it must hold {CAPTIONS_JSON} or {CAPTIONS_TSV}, beside "
            f"{IMAGES_FOLDER}/, as the public downloader writes them"
        )
    if not images.is_dir():
        raise UsageError(
            f"{images}: the folder of the images does not exist; name another as images=..."
        )
    rows = [{"image": name, "report": _sentence(caption)} for name, caption in captions]
    return chain(rejected, examples(rows, images, {"image": ["image"], "report": ["report"]}))


def _sentence(caption: str | None) -> str:
    """A caption as one sentence; as it is where it has no words, for its rejection to say so."""
    sentence = one_sentence(cells.text(caption))
    # Its full stop tells the word "none" from what stands for a missing caption.
    return f"{sentence}." if sentence else cells.text(caption)


def _read_json(path: Path) -> list[tuple[str, str | None]]:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}; download the captions again") from error
    if not isinstance(content, dict) or not content:
        found = "an empty one" if content == {} else f"a {type(content).__name__}"
        raise UsageError(f"{path}: must be an object of image name -> caption, not {found}")
    for name, caption in content.items():
        if caption is not None and not isinstance(caption, str):
            raise UsageError(f"{path}: the caption of {name!r} must be a text, not {caption!r}")
    return list(content.items())


def _read_tsv(path: Path) -> tuple[list[tuple[str, str | None]], list[Rejected]]:
    captions: list[tuple[str, str | None]] = []
    rejected = []
    # Not splitlines(), which also breaks at characters that captions may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        name, tab, caption = line.partition("\t")
        if tab:
            captions.append((name, caption))
        elif line.strip():
            rejected.append(Rejected("", "", f"line has no tab: {path.name}, line {number}"))
    if not captions:
        raise UsageError(
            f"{path}: no line is an image name, a tab and a caption; download the captions again"
        )
    return captions, rejected
