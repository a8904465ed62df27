"""From a source's name and the user's settings to a prepared dataset."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare
from raymed.data.schema import DatasetInfo
from raymed.data.shards import Spread, in_process
from raymed.data.sources import iu_xray, peir_gross, phantom, r2gen, table
from raymed.errors import UsageError
from raymed.sections import PrepareConfig


def prepare_source(
    source: str,
    path: str | None,
    settings: PrepareConfig,
    console: Console,
    spread: Spread = in_process,
) -> DatasetInfo:
    """Prepare ``iu-xray``, ``peir-gross``, ``r2gen``, ``table`` or ``phantom`` as settings say.

    Args:
        path: the source's folder or file, or the table; None for the phantom, which has none.
        spread: how the work is spread; `settings.workers` and `settings.address` are not looked at.

    Raises:
        UsageError: a view is asked of a source without views, or as the source and
            `raymed.data.prepare.prepare` raise it.
    """
    need_views = settings.views != "all"
    if need_views and source in ("phantom", "peir-gross", "r2gen"):
        raise UsageError(
            f"views={settings.views}: the images of {source} have no views to choose by; only "
            "iu-xray and a table with a view column have. Leave it out, or give views=all"
        )
    images = Path(settings.images) if settings.images else None
    total = None
    examples: Iterator[Example | Rejected]
    if source == "phantom":
        total = settings.studies
        examples = phantom.draw(settings.studies, settings.seed, settings.image_size)
    elif source == "iu-xray":
        assert path is not None
        examples = iu_xray.read(Path(path), images, need_views=need_views)
    elif source == "peir-gross":
        assert path is not None
        examples = peir_gross.read(Path(path), images)
    elif source == "r2gen":
        assert path is not None
        examples = r2gen.read(Path(path), images)
    else:
        assert path is not None
        examples = table.read(
            Path(path),
            images,
            settings.columns,
            needed=("view",) if need_views else (),
            unused=() if settings.split in ("auto", "given") else ("split",),
            tag_separator=settings.tag_separator,
            uncertain=settings.uncertain,
            say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
        )
    return prepare(
        examples,
        settings.out,
        source=source,
        image_size=settings.image_size,
        protocol=settings.split,
        seed=settings.seed,
        views=settings.views,
        split_file=Path(settings.split_file) if settings.split_file else None,
        overwrite=settings.overwrite,
        total=total,
        console=console,
        spread=spread,
    )
