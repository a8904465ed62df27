from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from raymed.evaluation import Baseline
from raymed.tuning.leaderboard import TrialResult, leaderboard_table, ranked, write_leaderboard

VALUES = {"loss.attention": 0.0, "model.top_tags": 3, "model.encoder": "small"}
GOOD = TrialResult("trial-002", VALUES, "completed", 9, 0.5, 0.5, 0.7, 12.0)
STOPPED = TrialResult(
    "trial-000", VALUES | {"loss.attention": 0.02}, "stopped", 3, 0.2, 0.2, 0.6, 4.0
)
ZERO = TrialResult("trial-001", VALUES, "stopped", 3, 0.0, 0.0, 0.1, 4.0)
FAILED = TrialResult(
    "trial-003", VALUES, "failed", 0, None, None, None, 0.0, "diverged [/] at epoch 1"
)
LATE = TrialResult("trial-004", VALUES, "failed", 5, 0.2, 0.2, 0.5, 7.0, "out of memory")


def test_the_highest_score_stands_first_and_none_last() -> None:
    assert ranked([FAILED, STOPPED, ZERO, GOOD, LATE]) == [GOOD, STOPPED, LATE, ZERO, FAILED]


def test_table_file_has_a_row_per_trial_in_order(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.parquet"
    write_leaderboard(path, [GOOD, STOPPED, FAILED])
    rows = pq.read_table(path).to_pylist()
    assert [row["place"] for row in rows] == [1, 2, 3]
    assert rows[1] == {
        "place": 2,
        "trial": "trial-000",
        "state": "stopped",
        "epochs": 3,
        "score": 0.2,
        "cider": 0.2,
        "recall_5": 0.6,
        "seconds": 4.0,
        "reason": "",
        "loss.attention": 0.02,
        "model.top_tags": 3,
        "model.encoder": "small",
    }
    assert rows[2]["score"] is None
    assert rows[2]["cider"] is None
    assert rows[2]["reason"] == "diverged [/] at epoch 1"
    assert [file.name for file in tmp_path.iterdir()] == ["leaderboard.parquet"]


def test_table_on_the_terminal_shows_trials_and_baselines_in_order() -> None:
    console = Console(width=80, record=True, quiet=False)
    baselines = {
        "constant report": Baseline(2.58, 0.21),
        "nearest image": Baseline(5.05, 0.43),
    }
    with console.capture() as captured:
        console.print(leaderboard_table([GOOD, STOPPED, FAILED], baselines))
    text = captured.get()
    places = [text.index(name) for name in ("trial-002", "trial-000", "trial-003", *baselines)]
    assert places == sorted(places)
    (row,) = (line for line in text.splitlines() if line.startswith("trial-000"))
    for shown in ("0.200", "0.600", "loss.attention 0.02"):
        assert shown in row
    # One trial's part of the text ends where the next one's begins.
    for name, after, state in (("000", "trial-003", "[stopped]"), ("003", "constant", "[failed]")):
        assert state in text[text.index(f"trial-{name}") : text.index(after)]
    (row,) = (line for line in text.splitlines() if line.startswith("nearest image"))
    assert row.split()[2:] == ["5.050", "0.430"]
    assert "completed" not in text
    assert max(map(len, text.splitlines())) <= 80
