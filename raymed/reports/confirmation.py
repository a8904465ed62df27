"""What a confirmation found: the best trials' settings and the file's own, each over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymed.metrics.differences import MeanDifference
from raymed.metrics.resampling import LEVEL
from raymed.metrics.table import Metric

OWN = "own"
"""Name of the file's own settings, that is, the configuration without any proposal."""
OWN_LABEL = "the file's own settings"
PERCENT = f"{LEVEL} %"


@dataclass(frozen=True)
class ConfirmedSettings:
    """Settings trained with several seeds.

    Attributes:
        name: The trial's name, or `OWN`.
        rank: The trial's place in the search, from 1; None for the file's own settings.
        searched: The trial's validation score in the search, with a single seed.
        values: The searched keys and the values of these settings.
        validation: The validation score with each seed.
        test: The test score with each seed; None for a run that is not finished.
        difference: By how much the test score is higher than with the file's own settings; None
            for these, and if a run is not finished.
        nearest: The test score with each seed of the nearest training image's report, found by the
            features of that run's encoder; None where there is none.
    """

    name: str
    rank: int | None
    searched: float | None
    values: Mapping[str, Any]
    validation: tuple[float | None, ...]
    test: tuple[float | None, ...]
    difference: MeanDifference | None = None
    nearest: tuple[float | None, ...] = ()

    @property
    def label(self) -> str:
        """The name for people."""
        return OWN_LABEL if self.rank is None else self.name

    @property
    def is_finished(self) -> bool:
        """Whether all runs are trained and scored."""
        return None not in self.test

    @property
    def validation_mean(self) -> float:
        """The mean over seeds, by which settings are ranked; they must be finished."""
        return _mean(self.validation)

    @property
    def test_mean(self) -> float:
        """The mean over seeds on the test split; the settings must be finished."""
        return _mean(self.test)


@dataclass(frozen=True)
class Confirmation:
    """The outcome of a confirmation.

    Attributes:
        metric: The metric of the scores: what the sweep's first objective means.
        seeds: The seeds.
        settings: Finished ones first, by their means on the validation split, the best first.
    """

    metric: Metric
    seeds: tuple[int, ...]
    settings: Sequence[ConfirmedSettings]

    @property
    def finished(self) -> list[ConfirmedSettings]:
        """The settings whose runs are all finished, best first."""
        return [one for one in self.settings if one.is_finished]

    @property
    def winner(self) -> ConfirmedSettings | None:
        """The settings that are confirmed: the best of two or more on the validation split."""
        return self.finished[0] if len(self.finished) > 1 else None

    def place(self, name: str) -> int | None:
        """The place of settings among the finished ones, from 1."""
        names = [one.name for one in self.finished]
        return names.index(name) + 1 if name in names else None

    def columns(self, trial: str) -> dict[str, float | None]:
        """What the leaderboard says of a trial; None for one that is not confirmed."""
        place = self.place(trial)
        one = self.finished[place - 1] if place else None
        return {
            "confirmed_place": place,
            "confirmed_validation": one.validation_mean if one else None,
            "confirmed_test": one.test_mean if one else None,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of a table, as text."""
        heads = ["settings", "rank in the search", "search", "validation", "test", "difference"]
        return [*heads, "nearest image (features)"], [self._row(one) for one in self.settings]

    def in_words(self) -> str:
        """What is confirmed and by how much, in a few sentences."""
        runs = len(self.settings) * len(self.seeds)
        ended = sum(score is not None for one in self.settings for score in one.test)
        if self.winner is None:
            return (
                f"Nothing is confirmed yet: {ended} of {runs} runs are finished, and it takes two "
                "settings to compare."
            )
        text = self._of_winner(self.winner)
        best = next((one for one in self.finished if one.rank == 1), self.winner)
        if best is not self.winner:
            text += f" The search's best trial, {best.name}, {self._compared(best)}."
        if ended < runs:
            left = f"{runs - ended} of {runs}"
            text += f" Runs that are not finished: {left}; their settings are not ranked."
        return text

    def _of_winner(self, winner: ConfirmedSettings) -> str:
        validation = self._spread(winner.validation)
        over = f"the highest mean validation {self.metric.label} over {len(self.seeds)} seeds"
        if winner.rank is None:
            return f"{OWN_LABEL.capitalize()} have {over}, {validation}: no trial is confirmed."
        return (
            f"{winner.name}, rank {winner.rank} of the search, has {over}, {validation} (in the "
            f"search {self.metric.format(winner.searched)}). It {self._compared(winner)}."
        )

    def _compared(self, one: ConfirmedSettings) -> str:
        """Settings beside the file's own, on the test split."""
        if (gap := one.difference) is None:
            return f"cannot be compared with {OWN_LABEL}, whose runs are not finished"
        found = "is not distinguishable from"
        if gap.excludes_zero:
            found = "is better than" if gap.mean > 0 else "is worse than"
        mean, low, high = map(self.metric.format, (gap.mean, gap.low, gap.high))
        return (
            f"{found} {OWN_LABEL}: test {self.metric.label} {self._spread(one.test)}, a difference "
            f"of {mean} ({PERCENT} interval {low} to {high})"
        )

    def _row(self, one: ConfirmedSettings) -> list[str]:
        difference = ""
        if one.difference is not None:
            gap = (one.difference.mean, one.difference.low, one.difference.high)
            difference = "{} [{}, {}]".format(*map(self.metric.format, gap))
        return [
            one.label,
            "" if one.rank is None else str(one.rank),
            "" if one.searched is None else self.metric.format(one.searched),
            self._spread(one.validation),
            self._spread(one.test),
            difference,
            self._spread(one.nearest) if one.nearest and None not in one.nearest else "",
        ]

    def _spread(self, scores: Sequence[float | None]) -> str:
        """Mean and standard deviation, or how many runs are finished."""
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return f"{len(known)} of {len(scores)} runs"
        mean, deviation = statistics.fmean(known), statistics.stdev(known)
        return f"{self.metric.format(mean)} ±{self.metric.format(deviation)}"


def _mean(scores: Sequence[float | None]) -> float:
    assert None not in scores
    return statistics.fmean(score for score in scores if score is not None)
