"""What a confirmation says in words."""

from dataclasses import replace
from typing import Any

from raymed.metrics.differences import MeanDifference
from raymed.metrics.table import METRICS
from raymed.reports.confirmation import OWN, Confirmation, ConfirmedSettings


def settings(name: str, rank: int | None, test: tuple[Any, ...], *gap: float) -> ConfirmedSettings:
    validation = tuple(None if score is None else score + 0.1 for score in test)
    searched = None if rank is None else 1.25
    difference = MeanDifference(*gap) if gap else None
    return ConfirmedSettings(name, rank, searched, {}, validation, test, difference)


def found(*ranked: ConfirmedSettings) -> Confirmation:
    return Confirmation(METRICS["cider"], (1, 2), ranked)


SAME = settings(OWN, None, (0.5, 0.7))


def test_a_better_winner_that_was_not_first_in_the_search() -> None:
    best = settings("trial-004", 3, (1.0, 1.2), 0.5, 0.2, 0.8)
    first = settings("trial-001", 1, (0.6, 0.8), 0.1, -0.2, 0.4)
    confirmation = found(best, first, SAME)
    assert confirmation.winner is best
    assert confirmation.in_words() == (
        "trial-004, rank 3 of the search, has the highest mean validation CIDEr over 2 seeds, "
        "1.200 ±0.141 (in the search 1.250). It is better than the file's own settings: test CIDEr "
        "1.100 ±0.141, a difference of 0.500 (95 % interval 0.200 to 0.800). The search's best "
        "trial, trial-001, is not distinguishable from the file's own settings: test CIDEr 0.700 "
        "±0.141, a difference of 0.100 (95 % interval -0.200 to 0.400)."
    )
    assert [confirmation.place(name) for name in ("trial-004", "trial-001", OWN)] == [1, 2, 3]
    assert confirmation.columns("trial-001") == {
        "confirmed_place": 2,
        "confirmed_validation": (0.7 + 0.9) / 2,
        "confirmed_test": (0.6 + 0.8) / 2,
    }
    assert {*confirmation.columns("trial-009").values()} == {None}


def test_a_winner_that_luck_may_have_made() -> None:
    text = found(settings("trial-000", 1, (0.6, 0.8), 0.1, -0.2, 0.4), SAME).in_words()
    assert text.count("trial-000") == 1
    assert "It is not distinguishable from the file's own settings" in text


def test_no_trial_is_better_than_the_files_own_settings() -> None:
    worse = settings("trial-000", 1, (0.1, 0.2), -0.4, -0.7, -0.1)
    assert found(SAME, worse).in_words() == (
        "The file's own settings have the highest mean validation CIDEr over 2 seeds, 0.700 "
        "±0.141: no trial is confirmed. The search's best trial, trial-000, is worse than the "
        "file's own settings: test CIDEr 0.150 ±0.071, a difference of -0.400 (95 % interval "
        "-0.700 to -0.100)."
    )


def test_settings_with_a_run_missing_are_not_ranked() -> None:
    half = settings("trial-000", 1, (0.9, None))
    other = settings("trial-001", 2, (0.6, 0.8), 0.1, -0.2, 0.4)
    confirmation = found(other, SAME, half)
    assert confirmation.place("trial-000") is None
    assert confirmation.in_words().endswith(
        " Runs that are not finished: 1 of 6; their settings are not ranked."
    )
    _, rows = confirmation.table()
    assert rows[2] == ["trial-000", "1", "1.250", "1 of 2 runs", "1 of 2 runs", "", ""]
    assert rows[0][-2:] == ["0.100 [-0.200, 0.400]", ""]
    # Where the file's own runs are missing, there is nothing to compare with.
    trials = settings("trial-001", 2, (0.6, 0.8)), settings("trial-002", 3, (0.1, 0.1))
    alone = found(*trials, settings(OWN, None, (0.5, None)))
    assert "It cannot be compared with the file's own settings" in alone.in_words()


def test_the_nearest_image_by_each_runs_features() -> None:
    own, trial = replace(SAME, nearest=(0.3, 0.5)), settings("trial-000", 1, (0.6, 0.8))
    heads, rows = found(trial, own, replace(trial, nearest=(0.4, None))).table()
    assert heads[-1] == "nearest image (features)"
    assert [row[-1] for row in rows] == ["", "0.400 ±0.141", ""]


def test_nothing_is_confirmed_before_two_settings_are_finished() -> None:
    confirmation = found(SAME, settings("trial-000", 1, (0.9, None)))
    assert confirmation.winner is None
    assert confirmation.in_words().startswith("Nothing is confirmed yet: 3 of 4 runs are finished")
