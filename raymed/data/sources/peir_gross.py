"""Source: PEIR Gross, the gross pathology collections of the PEIR digital library."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.sources.source import Source
from raymed.data.sources.table import examples
from raymed.data.sources.table_files import read_text
from raymed.data.text import one_sentence
from raymed.errors import UsageError

IMAGES_FOLDER = "peir_gross_images"
CAPTIONS_JSON = "peir_gross_captions.json"
CAPTIONS_TSV = "peir_gross.tsv"
_FIELDS = {field: [field] for field in ("image", "report")}


def read(folder: Path, images_folder: Path | None = None) -> Iterator[Example | Rejected]:
    """Yield every image with its caption, in the order of the captions file.

    The public downloader (bioCaption) writes the captions twice. If both files exist, the JSON is
    used: captions with a line break or a tab are complete only there, and a resumed download
    updates only that file.

    A caption is one sentence, as in the paper, even if it contains full stops: they end
    abbreviations and remarks ("Dr. Smith", "excellent example."). It is preprocessed like any
    report. Its tags are those of its words that are among the 1,000 most frequent in all captions,
    including the captions of missing images. Every image is its own study, since the captions do
    not tell which images show the same specimen.

    Args:
        folder: Holds ``peir_gross_captions.json``, an object of image name -> caption, or
            ``peir_gross.tsv``, with lines of image name, tab and caption.
        images_folder: Folder of the images; by default ``peir_gross_images`` in ``folder``.

    Raises:
        UsageError: A folder is missing, or there are no captions in either format.
    """
    folder = Path(folder)
    images_folder = folder / IMAGES_FOLDER if images_folder is None else Path(images_folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: the folder does not exist")
    rejected: list[Rejected] = []
    if (folder / CAPTIONS_JSON).is_file():
        captions = _read_json(folder / CAPTIONS_JSON)
    elif (folder / CAPTIONS_TSV).is_file():
        captions, rejected = _read_tsv(folder / CAPTIONS_TSV)
    else:
        raise UsageError(
            f"{folder}: no captions found: the folder must contain {CAPTIONS_JSON} or "
            f"{CAPTIONS_TSV} beside {IMAGES_FOLDER}/, as the public downloader writes them"
        )
    if not images_folder.is_dir():
        raise UsageError(
            f"{images_folder}: the images folder does not exist; give another with images=..."
        )
    rows = [{"image": name, "report": _sentence(caption)} for name, caption in captions]
    return chain(rejected, examples(rows, images_folder, _FIELDS))


def _sentence(caption: str | None) -> str:
    """Join a caption into one sentence; a caption without words is left for the rejection."""
    sentence = one_sentence(cells.text(caption))
    # With a full stop, the word "none" is not read as a missing caption.
    return f"{sentence}." if sentence else cells.text(caption)


def _read_json(path: Path) -> list[tuple[str, str | None]]:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}; download the captions again") from error
    if not isinstance(content, dict) or not content:
        found = "an empty object" if content == {} else f"a {type(content).__name__}"
        raise UsageError(f"{path}: must be an object of image name -> caption, not {found}")
    for name, caption in content.items():
        if caption is not None and not isinstance(caption, str):
            raise UsageError(f"{path}: the caption of {name!r} must be text, not {caption!r}")
    return list(content.items())


def _read_tsv(path: Path) -> tuple[list[tuple[str, str | None]], list[Rejected]]:
    captions: list[tuple[str, str | None]] = []
    rejected = []
    # Not splitlines(), which also splits at characters that captions may contain.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        name, tab, caption = line.partition("\t")
        if tab:
            captions.append((name, caption))
        elif line.strip():
            rejected.append(Rejected("", "", f"line without a tab: {path.name}, line {number}"))
    if not captions:
        raise UsageError(
            f"{path}: no line has an image name, a tab and a caption; download the captions again"
        )
    return captions, rejected


SOURCE = Source(
    name="peir-gross",
    summary="what the public downloader of PEIR Gross writes",
    read=lambda folder, settings, _: read(folder, settings.images_folder),
    path="FOLDER",
    accepts=("images", "split_file"),
)
