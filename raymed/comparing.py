"""Comparing two systems' reports of the same images: is the difference more than chance?"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from raymed.errors import UsageError
from raymed.matching import Matched, in_both, match
from raymed.metrics.resampling import (
    LEVEL,
    Interval,
    StudySums,
    bootstrap,
    exchange,
    interval,
    p_value,
    study_numbers,
)
from raymed.metrics.scoring import SplitScores, score_split
from raymed.metrics.table import METRICS, scored_metrics
from raymed.report_sets import ReportSet, chained
from raymed.scores import without_nan
from raymed.scoring import Request, predictions_path
from raymed.storage import AnyPath, as_path, atomic_write_text, reason

COMPARISON_FILE = "comparison.json"
SIGNIFICANT = 0.05
FEWEST_DIGITS, MOST_DIGITS = 2, 4


@dataclass(frozen=True)
class Difference:
    """One metric of two systems.

    Attributes:
        metric: The metric's key.
        first: The first system's score.
        second: The second system's.
        difference: The first's minus the second's.
        interval: The paired bootstrap interval of the difference.
        p_bootstrap: The share of resamples whose difference is as far from the observed one as that
            is from 0.
        p: The p-value of paired approximate randomisation.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: Interval
    p_bootstrap: float
    p: float

    def sentence(self, names: tuple[str, str]) -> str:
        """The result in words."""
        label = METRICS[self.metric].label
        for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
            first, second = f"{self.first:.{digits}f}", f"{self.second:.{digits}f}"
            if first != second or self.first == self.second:
                break
        against = f"{first} against {second}, p = {self.p:.{2 if self.p >= 0.1 else 4}f}"
        if math.isnan(self.p):
            return f"{label} is undefined, so nothing can be said of it."
        if self.p >= SIGNIFICANT:
            return f"{names[0]} is not distinguishable from {names[1]} in {label}: {against}."
        order = "higher" if self.difference > 0 else "lower"
        return f"{names[0]} is {order} than {names[1]} in {label}: {against}."


@dataclass(frozen=True)
class Comparison:
    """Two systems compared.

    Attributes:
        names: What they are called.
        images: The number of images that both have reports of.
        studies: The number of their studies.
        differences: A metric each.
        distinct: The numbers of distinct reports, which no resample can tell.
        notes: What was left out, and which metrics are missing.
    """

    names: tuple[str, str]
    images: int
    studies: int
    differences: tuple[Difference, ...]
    distinct: tuple[int, int]
    notes: tuple[str, ...]

    def table(self) -> Table:
        """The comparison for the terminal, a metric to a line."""
        table = Table(
            title=f"{self.images:,} images of {self.studies:,} studies",
            caption=f"difference: with its {LEVEL} % paired bootstrap interval; p: paired "
            "approximate randomisation, and bootstrap",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in ("", *self.names, "difference", "p", "p (bootstrap)"):
            table.add_column(head, justify="right" if head else "left", overflow="fold")
        for each in self.differences:
            metric = METRICS[each.metric]
            bounds = ", ".join(map(metric.format, each.interval))
            table.add_row(
                metric.label,
                *map(metric.format, (each.first, each.second)),
                f"{metric.format(each.difference)} [{bounds}]",
                *(f"{p:.4f}" for p in (each.p, each.p_bootstrap)),
            )
        table.add_row(METRICS["distinct"].label, *map(str, self.distinct), "", "", "")
        return table

    def sentences(self) -> list[str]:
        """The comparison in words, a metric to a line."""
        return [each.sentence(self.names) for each in self.differences]

    def write(self, out: AnyPath) -> None:
        """Write ``comparison.json`` to a folder.

        Raises:
            UsageError: It cannot be written.
        """
        content = without_nan({**asdict(self), "sentences": self.sentences()})
        try:
            out.mkdir(parents=True, exist_ok=True)
            atomic_write_text(out / COMPARISON_FILE, json.dumps(content, indent=1))
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({reason(error)})") from error


def compare(first: str, second: str, request: Request) -> Comparison:
    """Compare the reports in two files, or in two evaluations' folders.

    Both are scored on the images that both have, with the same resamples of studies.

    Args:
        first: The first system's reports.
        second: The second's.
        request: What they are scored against; by default the references in the first file.

    Raises:
        UsageError: A file cannot be read, nothing matches, or the two were scored against
            different references.
    """
    with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
        pairs = list(in_both(*_read(first, second, request, Path(folder))))
        lexicon = _Texts(pairs)
        scored = [score_split(each.to_score(lexicon), scored_metrics()) for each in pairs]
        studies = study_numbers(pairs[0].studies, len(pairs[0]))
        left_out = chain.from_iterable(each.left_out for each in pairs)
        missing = {**scored[0].unavailable, **scored[1].unavailable}
        reasons = (f"{METRICS[key].label} is missing: {why}" for key, why in missing.items())
        return Comparison(
            names=_names(first, second),
            images=len(studies),
            studies=len(np.unique(studies)),
            differences=tuple(differences(scored[0], scored[1], studies)),
            distinct=(_distinct(scored[0]), _distinct(scored[1])),
            notes=tuple(dict.fromkeys(chain(left_out, reasons))),
        )


def differences(one: SplitScores, other: SplitScores, studies: np.ndarray) -> Iterator[Difference]:
    """The difference of two systems in each metric that both have and that studies make up.

    Args:
        one: The first system's scores.
        other: The second's, of the same images.
        studies: The study of each image, as any integers [images].
    """
    modules = [name for name in one.per_image if name in other.per_image]
    sums = [StudySums([each.per_image[name] for name in modules], studies) for each in (one, other)]
    shared = {key for key in one.scores if None not in (one.scores[key], other.scores[key])}
    drawn, exchanged = bootstrap(sums), exchange(*sums)
    resampled = [sums[0].scores(each) for each in drawn]
    shuffled = [sums[0].scores(each) for each in exchanged]
    for key, metric in METRICS.items():
        if key not in shared or key not in resampled[0]:
            continue
        first, second = float(one.scores[key] or 0), float(other.scores[key] or 0)
        observed = first - second
        of_resamples = resampled[0][key] - resampled[1][key]
        defined = not np.isnan(of_resamples).all()
        yield Difference(
            metric=metric.key,
            first=first,
            second=second,
            difference=observed,
            interval=interval(of_resamples) if defined else (math.nan, math.nan),
            p_bootstrap=p_value(observed, of_resamples - observed),
            p=p_value(observed, shuffled[0][key] - shuffled[1][key]),
        )


class _Texts:
    """All reports and references, for METEOR's table of paraphrases."""

    def __init__(self, pairs: list[Matched]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[str]:
        for each in self._pairs:
            columns = each.columns()
            yield from chain(columns["reference"], columns["report"])


def _read(first: str, second: str, request: Request, folder: Path) -> tuple[Matched, Matched]:
    """Both systems' reports, matched with the references."""
    paths = predictions_path(first), predictions_path(second)
    own = [request.read_predictions(path, folder) for path in paths]
    where = request.references
    if where is None:
        if own[0].references is None:
            raise UsageError(
                f"{paths[0]}: has no references; give references=DATASET or references=FILE"
            )
        where = paths[0]
    truth = request.read_references(where, folder)
    one, other = (match(each, truth, (path, where)) for each, path in zip(own, paths, strict=True))
    if request.references is None:
        _refuse_other_references(other, paths)
    return one, other


def _refuse_other_references(matched: Matched, paths: tuple[str, str]) -> None:
    theirs: ReportSet = matched.predictions
    if theirs.references is None:
        return
    written, truth = (
        matched.written(theirs.references),
        matched.truth(matched.references.sentences).map(chained),
    )
    names = matched.truth(matched.references.ids)
    for name, own, other in zip(names, truth, written, strict=True):
        if own != other:
            raise UsageError(
                f"{paths[1]}: the reference of {name} is not that in {paths[0]}; give the "
                "references to use with references=DATASET or references=FILE"
            )


def _names(first: str, second: str) -> tuple[str, str]:
    """The files' names, or their paths if they share one."""
    names = [as_path(each).name.partition(".")[0] for each in (first, second)]
    return (names[0], names[1]) if names[0] != names[1] else (first, second)


def _distinct(scored: SplitScores) -> int:
    return int(scored.scores["distinct"] or 0)
