"""Preparing a dataset: from what a source yields to Parquet parts per split."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console

from raymed.data import split
from raymed.data.collection import Collection
from raymed.data.destination import new_dataset
from raymed.data.examples import Example, ImageInput, Rejected
from raymed.data.r2gen_text import R2GenRows, R2GenRules
from raymed.data.schema import DatasetInfo
from raymed.data.shards import DecodedShard, shards_of, write_shard
from raymed.data.sources import check_settings, load_source
from raymed.data.summary import print_line, print_statistics, print_summary
from raymed.data.text import preprocess
from raymed.data.work import Executor, in_process
from raymed.data.writing import Workspace, write_dataset
from raymed.errors import UsageError
from raymed.progress import Progress
from raymed.sections import PrepareConfig


def prepare_source(
    source: str,
    path: str | None,
    settings: PrepareConfig,
    console: Console,
    executor: Executor = in_process,
) -> DatasetInfo:
    """Prepare a registered source.

    Args:
        source: A name in `raymed.data.sources.SOURCES`.
        path: Folder or file of the source; None if it has none.
        settings: An instance of the source's settings class; `workers` and `address` are ignored.
        console: Where to print.
        executor: How the work is distributed.

    Raises:
        UsageError: A setting belongs to another source, or whatever the source and `prepare`
            raise.
    """
    check_settings(source, settings.model_fields_set)
    registered = load_source(source)
    rules = None
    if settings.text == "r2gen":
        assert registered.r2gen_rules is not None
        rules = registered.r2gen_rules(Path(path or ""))
    return prepare(
        registered.read(Path(path or ""), settings, partial(print_line, console)),
        source,
        settings,
        console,
        executor=executor,
        total=registered.count(settings),
        rules=rules,
    )


def prepare(
    examples: Iterable[Example | Rejected],
    source: str,
    settings: PrepareConfig,
    console: Console | None = None,
    *,
    executor: Executor = in_process,
    total: int | None = None,
    rules: R2GenRules | None = None,
) -> DatasetInfo:
    """Write examples as a prepared dataset to ``settings.out``.

    An interrupted dataset is never mistaken for a complete one (see `raymed.data.destination`). An
    image or report that cannot be used is left out and listed with its reason in
    ``rejected.parquet``. The dataset does not depend on the executor.

    Args:
        examples: What the source yields.
        source: Name of the source, such as ``iu-xray``.
        settings: Destination, image size, split protocol, seed and views.
        console: Where to print; the progress bar is shown only on a terminal.
        executor: How images are decoded and parts are written: in this process or on a cluster.
        total: The number of examples, if known, for the progress bar.
        rules: R2Gen's rules for the reports; None: those of the paper.

    Raises:
        UsageError: ``out`` exists, nothing is usable, a split is empty, there are fewer than two
            tags, the disk is full, or the source raised it. If the source had yielded examples,
            their statistics are printed first.
    """
    console = console or Console()
    protocol, listed = _requested_split(settings)
    tokenise = rules.preprocess if rules else preprocess
    with (
        new_dataset(settings.out, settings.overwrite) as target,
        closing(
            Collection(target.scratch, settings.views, keep_ids=bool(listed), tokenise=tokenise)
        ) as collection,
    ):
        workspace = Workspace(settings, target, executor, console)
        try:
            _collect(workspace, collection, examples, total)
            rows = collection.rows
            protocol, assigned = split.assign(
                protocol,
                [rows.image_ids[row] for row in collection.usable],
                [rows.studies[row] for row in collection.usable],
                [rows.given_splits[row] for row in collection.usable],
                seed=settings.seed,
                listed=listed,
            )
            limited = None
            if rules:
                training = _training_rows(collection, protocol, assigned, listed)
                limited = R2GenRows(rows, rules, collection.one_per_record(training))
            info = write_dataset(workspace, collection, source, protocol, assigned, limited)
        except UsageError:
            print_statistics(console, collection, source)
            raise
    prepared = {name for row in collection.usable for name in rows.ids(row)} if listed else set()
    coverage = split.coverage(listed, collection.ids, prepared)
    print_summary(console, info, collection, settings.out, coverage)
    return info


def _requested_split(settings: PrepareConfig) -> tuple[str, dict[str, str]]:
    """Return the split protocol, and id -> split if it needs a split file.

    Raises:
        UsageError: The split file cannot be read, is missing, or does not fit the protocol.
    """
    protocol: str = settings.split
    if protocol == "auto" and settings.split_file:
        protocol = "r2gen"
    if (protocol == "r2gen") != bool(settings.split_file):
        raise UsageError(
            f"split protocol `{protocol}` "
            + ("needs a split file" if protocol == "r2gen" else "does not use a split file")
            + ": R2Gen's annotation.json, or a JSON object with the lists train, val and test"
        )
    listed = split.read_split_file(Path(settings.split_file)) if settings.split_file else {}
    return protocol, listed


def _collect(
    workspace: Workspace,
    collection: Collection,
    examples: Iterable[Example | Rejected],
    total: int | None,
) -> None:
    """Read and preprocess the examples, and decode their images into shards.

    Raises:
        UsageError: Nothing is usable, or a machine of the cluster does not see the images.
    """
    failed: dict[int, str] = {}
    with Progress("reading images", total, workspace.console) as progress:

        def images() -> Iterator[ImageInput]:
            yield from collection.add(examples)
            progress.update(total=len(collection.rows))

        shards = shards_of(images(), workspace.settings.image_size, workspace.target.scratch)
        for decoded in workspace.executor(write_shard, shards):
            _check_visible(decoded)
            failed |= decoded.failed
            progress.advance(decoded.count)
    collection.finish(failed)


def _training_rows(
    collection: Collection,
    protocol: str,
    assigned: Sequence[str | None],
    listed: Mapping[str, str],
) -> Iterator[int]:
    """Yield the numbers of the training rows.

    Where the split of every row is known, those whose image cannot be used are among them, so that
    an unreadable image does not change the vocabulary.
    """
    rows, numbers = collection.rows, collection.usable
    if protocol == "given":
        numbers = range(len(rows))
        assigned = split.as_given(rows.image_ids, rows.given_splits)
    elif protocol == "r2gen":
        numbers = range(len(rows))
        assigned = split.by_file(rows.image_ids, rows.studies, listed)
    return (row for row, name in zip(numbers, assigned, strict=True) if name == "train")


def _check_visible(decoded: DecodedShard) -> None:
    """Raise UsageError if a file exists here but not on the machine that decoded the shard."""
    if decoded.missing is not None and decoded.missing.exists():
        raise UsageError(
            f"{decoded.missing}: exists here, but is not visible to a machine of the cluster: move "
            "the images to a folder that all machines share, or prepare with workers=0"
        )
