"""What a user of Ray finds: named runs, reported metrics, Tune's callbacks and its results."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray import train, tune
from rich.console import Console

import raymed
from raymed.config import Config
from raymed.launch import trainer
from raymed.launch.run import run_training
from raymed.training.checkpoint import Checkpoint
from raymed.tuning.sweep import Sweep, run_sweep
from tests.support.metric_rows import rows_of, untimed
from tests.support.threads import in_thread

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Lines(train.UserCallback):
    """Writes what Ray Train's controller is told, which is in a process of its own."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], **_: Any) -> None:
        with self.file.open("a") as file:
            print(json.dumps([run_context.run_config.name, metrics]), file=file)


def test_a_run_has_its_name_and_reports_its_metrics(
    tiny: Config,
    ray: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = tmp_path / "told"
    ours = trainer.RunConfig
    monkeypatch.setattr(trainer, "RunConfig", lambda **has: ours(**has, callbacks=[Lines(told)]))
    changes = {"run.folder": str(tmp_path), "run.name": "named", "launch.workers": 2}
    run_training(tiny.override(changes | {"training.epochs": 2}), Console(quiet=True))
    reports = [json.loads(line) for line in told.read_text().splitlines()]
    assert [name for name, _ in reports] == ["named"] * 2
    for (_, of_workers), row in zip(reports, rows_of(tmp_path / "named"), strict=True):
        first, second = of_workers
        assert untimed([first]) == untimed([second])
        assert row.items() <= first.items()
        assert Checkpoint.open(first["checkpoint_path"]).epoch == row["epoch"]


class Kept(tune.Callback):
    """Keeps what Ray Tune says of each trial."""

    def __init__(self) -> None:
        self.settings: dict[str, dict[str, Any]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self.settings[str(trial)] = dict(trial.config)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.results.setdefault(str(trial), []).append(dict(result))

    def __getstate__(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def swept(
    tiny: Config,
    ray: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, Sweep, Kept]:
    config = tiny.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("sweeps")),
            "run.name": "seen",
            "launch.workers": 1,
            "tune.trials": 2,
            "tune.groups": 1,
            "tune.stopping": "none",
            "tune.space": {
                "loss.tag": {"uniform": [0.5, 2]},
                "model.top_tags": {"integer": [2, 3]},
            },
        }
    )
    kept = Kept()
    # No signal handler can be installed in a thread.
    sweep = in_thread(lambda: raymed.tune(config, callbacks=[kept], quiet=True))
    assert isinstance(sweep, Sweep)
    return config, sweep, kept


def test_tunes_callbacks_see_settings_metrics_and_checkpoints(
    swept: tuple[Config, Sweep, Kept],
) -> None:
    _, sweep, kept = swept
    for trial in sweep.results:
        assert trial.values.items() <= kept.settings[trial.trial].items()
        results = kept.results[trial.trial]
        rows = rows_of(sweep.folder / "trials" / trial.trial)
        reported = [result for result in results if "score" in result][: len(rows)]
        assert [result["training_iteration"] for result in reported] == [1, 2, 3]
        for row, result in zip(rows, reported, strict=True):
            assert row.items() <= result.items()
        # What is left at the end is the best epoch's.
        assert Checkpoint.open(reported[-1]["checkpoint_path"]) == Checkpoint.open(
            sweep.folder / "trials" / trial.trial
        )


def test_the_result_grid_is_tunes(swept: tuple[Config, Sweep, Kept]) -> None:
    config, sweep, _ = swept
    assert sweep.grid is not None
    assert len(sweep.grid) == 2
    assert not sweep.grid.errors
    best = sweep.grid.get_best_result("objective", "max")
    assert best.metrics is not None
    assert best.metrics["objective"] == sweep.results[0].score
    # All trials are done: Tune does not run.
    assert run_sweep(config, Console(quiet=True)).grid is None


def test_a_sweep_is_a_dataframe(swept: tuple[Config, Sweep, Kept]) -> None:
    _, sweep, _ = swept
    frame, table = sweep.dataframe(), pq.read_table(sweep.leaderboard)
    assert frame["trial"].tolist() == [result.trial for result in sweep.results]
    assert frame.columns.tolist() == table.column_names
    assert frame["cider"].tolist() == table["cider"].to_pylist()
