"""From a source's name and the user's settings to a prepared data set."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from raymed.config import PrepareConfig
from raymed.data import iu_xray, phantom, table
from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare
from raymed.data.schema import DatasetInfo


def prepare_source(
    source: str, path: str | None, settings: PrepareConfig, console: Console
) -> DatasetInfo:
    """Prepare ``iu-xray``, ``table`` or ``phantom`` (which has no path) as the settings say.

    Raises:
        UsageError: as the source and `raymed.data.prepare.prepare` raise it.
    """
    images = Path(settings.images) if settings.images else None
    total = None
    examples: Iterator[Example | Rejected]
    if source == "phantom":
        total = settings.studies
        examples = phantom.draw(settings.studies, settings.seed, settings.image_size)
    elif source == "iu-xray":
        assert path is not None
        examples = iu_xray.read(Path(path), images)
    else:
        assert path is not None
        columns: dict[str, str | list[str]] = {
            field: name.split(",") if field == "tags" else name
            for field, name in settings.columns.items()
        }
        examples = table.read(Path(path), images, columns)
    return prepare(
        examples,
        settings.out,
        source=source,
        image_size=settings.image_size,
        protocol=settings.split,
        seed=settings.seed,
        split_file=Path(settings.split_file) if settings.split_file else None,
        overwrite=settings.overwrite,
        total=total,
        console=console,
    )
