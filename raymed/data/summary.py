"""What `raymed prepare` prints about a dataset."""

from collections.abc import Iterable

from rich.console import Console

from raymed.data.collection import Collection
from raymed.data.examples import rejection_summary
from raymed.data.schema import REJECTED_FILE, DatasetInfo
from raymed.data.statistics import table


def print_line(console: Console, line: str) -> None:
    """Print a line as it is, without markup, highlighting or wrapping."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_statistics(console: Console, collection: Collection, source: str) -> None:
    """Print the text statistics of a source; they are complete even if its images are not."""
    found = collection.found.statistics()
    if found.images:
        console.print(table({"found": found}, source))
        _print_lines(console, collection.left_out.shares().lines())


def print_summary(
    console: Console, info: DatasetInfo, collection: Collection, out: str, coverage: str
) -> None:
    """Print what a dataset contains and what was left out.

    Args:
        out: The dataset's folder or URI.
        coverage: What `raymed.data.split.coverage` returns.
    """
    console.print(table({"found": info.found, "prepared": info.prepared}, info.source))
    if info.r2gen:
        _print_lines(console, info.r2gen.lines())
    if info.left_out:
        _print_lines(console, info.left_out.lines())
    counts = ", ".join(f"{name} {count:,}" for name, count in info.counts.items())
    origin = "as the source names them" if info.protocol == "given" else f"seed {info.seed}"
    print_line(console, f"Images per split (protocol {info.protocol}, {origin}): {counts}")
    if coverage:
        print_line(console, f"Ids in the split file: {coverage}")
    if info.leaked or info.protocol == "paper":
        test = info.counts["test"]
        print_line(
            console,
            f"Leakage: {info.leaked:,} of {test:,} test images ({info.leaked / test:.0%}) share "
            "their study, and so their report, with a training image; scores on this test split "
            "are inflated.",
        )
    reasons = rejection_summary(collection.rejected)
    _print_lines(console, (f"Left out: {reason}" for reason in reasons))
    if reasons:
        print_line(console, f"Full list of what was left out: {out}/{REJECTED_FILE}")
    print_line(console, f"Prepared dataset: {out}")


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        print_line(console, line)
