"""One tiny sweep and its confirmation, interrupted between the phases and amid the second."""

import csv
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.cider.cider import Cider
from rich.console import Console

from raymed import config as configuration
from raymed.config import Config
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.reports.confirmation import OWN
from raymed.reports.sweep_results import TrialResult
from raymed.run_folder import RunFolder
from raymed.tuning.confirm import (
    CONFIRMED_FILE,
    contenders,
    describe,
    read_confirmation,
    unfinished_runs,
)
from raymed.tuning.page import read_sweep, write_report
from raymed.tuning.sweep import Sweep, run_sweep
from tests.support.metric_rows import rows_of
from tests.support.prepared import prepare_examples

SEEDS = (4, 5)
"""Those after `training.seed`."""
SPACE = {"training.learning_rate": {"choice": [0.008, 1e-6]}, "loss.tag": {"uniform": [1, 3]}}
POINTS = [{"training.learning_rate": rate, "loss.tag": 2.0} for rate in (1e-6, 0.008)]

Stamps = dict[Path, tuple[int, int]]


class InterruptingConsole(Console):
    """As if Ctrl-C were pressed once a line is printed that contains a text."""

    def __init__(self, text: str) -> None:
        super().__init__(file=io.StringIO(), record=True, width=80)
        self.text = text

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*objects, **settings)
        if self.text in str(objects[0]):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Confirmed:
    """A sweep that was interrupted twice.

    Attributes:
        config: Its configuration.
        between: The text of best.yaml after it was interrupted between the phases.
        finished: Number of runs that were finished when it was interrupted amid the second phase.
        before: Stamps of the files that were finished by then.
        sweep: What it came to.
        printed: By the last start.
    """

    config: Config
    between: str
    finished: int
    before: Stamps
    sweep: Sweep
    printed: str


def stamps(folder: Path) -> Stamps:
    """Identity and time of change of the files that say what a run has come to."""
    names = ("metrics.csv", "scores.json", "predictions.parquet", "model.safetensors")
    files = [file for file in folder.rglob("*") if file.name in names]
    assert files
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def interrupted(config: Config, text: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, InterruptingConsole(text))


@pytest.fixture(scope="module")
def config(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return learner.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("sweeps")),
            "run.name": "sweep",
            "training.epochs": 5,
            "training.seed": 3,
            "launch.workers": 1,
            "tune.trials": 2,
            "tune.groups": 1,
            "tune.stopping": "none",
            "tune.space": SPACE,
            "tune.points_to_evaluate": POINTS,
            "tune.confirm": {"top": 3, "seeds": 2},
        }
    )


@pytest.fixture(scope="module")
def done(config: Config, ray: None) -> Confirmed:  # noqa: ARG001
    folder = Path(config.run.folder) / "sweep"
    interrupted(config, "confirmation: ")
    between = (folder / "best.yaml").read_text()
    assert pq.read_table(folder / "leaderboard.parquet").num_rows == 2
    assert not [*folder.glob("confirm/*/metrics.csv")]
    interrupted(config, ": validation CIDEr ")
    finished = [file.parents[1] for file in folder.glob("confirm/*/scored/scores.json")]
    before = stamps(folder / "trials")
    for run in finished:
        before |= stamps(run)
    console = InterruptingConsole("never printed")
    sweep = run_sweep(config, console)
    return Confirmed(config, between, len(finished), before, sweep, console.export_text())


def runs_of(done: Confirmed) -> dict[str, list[Path]]:
    """The folders of the runs by their settings' names, seed by seed."""
    names = (OWN, "trial-000", "trial-001")
    folder = done.sweep.folder / "confirm"
    return {name: [Path(f"{folder}/{name}-seed-{seed}") for seed in SEEDS] for name in names}


def best_validation(run: Path) -> float:
    rows = [*csv.DictReader((run / "metrics.csv").read_text().splitlines())]
    return max(float(row["cider"]) for row in rows)


def cider_on_test(run: Path, row: str = "co_attention") -> float:
    scores = json.loads((run / "scored" / "scores.json").read_text())
    assert scores["split"] == "test"
    return float(scores["rows"][row]["cider"])


def ciders_of_each(run: Path) -> list[float]:
    table = pq.read_table(run / "scored" / "predictions.parquet").to_pydict()
    texts = [{i: [text] for i, text in enumerate(table[n])} for n in ("reference", "report")]
    return [float(score) for score in Cider().compute_score(*texts)[1]]


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_that_was_finished_is_done_again(done: Confirmed) -> None:
    folder = done.sweep.folder
    assert isinstance(folder, Path)
    now = stamps(folder)
    assert {file: now[file] for file in done.before} == done.before
    assert {path.name for path in folder.glob("confirm/*")} == {
        run.name for runs in runs_of(done).values() for run in runs
    }
    assert done.between.startswith("# trial-001, rank 1 of the search; not confirmed over seeds.\n")
    assert "2 of 2 trials are already done" in done.printed
    assert 0 < done.finished < 6, "nothing was interrupted"
    # More than there are trials.
    printed = " ".join(done.printed.split())
    assert f"6 runs, of which {done.finished} are finished already" in printed
    assert "tune.confirm.top is 3, but the number of trials with a score" in printed
    assert "confirmation: the 2 best trials and the file's own settings with seeds 4, 5" in printed


@pytest.mark.ray
@pytest.mark.slow
def test_every_run_has_the_settings_and_the_seed_that_it_is_called_after(done: Confirmed) -> None:
    values: dict[str, dict[str, Any]] = {OWN: {}, "trial-000": POINTS[0], "trial-001": POINTS[1]}
    for name, runs in runs_of(done).items():
        for seed, run in zip(SEEDS, runs, strict=True):
            trained = configuration.load(run / "config.yaml")
            assert (
                trained.training
                == done.config.override({**values[name], "training.seed": seed}).training
            )
            assert trained.loss == done.config.override(values[name]).loss
    # As trained by itself, without Ray.
    run = runs_of(done)[OWN][1]
    alone = configuration.load(run / "config.yaml").override(
        {"launch.workers": 0, "run.folder": done.config.run.folder, "run.name": "alone"}
    )
    run_training(alone, Console(quiet=True))
    assert rows_of(run) == rows_of(Path(done.config.run.folder) / "alone")


@pytest.mark.ray
@pytest.mark.slow
def test_settings_are_ranked_by_their_mean_on_the_validation_split(done: Confirmed) -> None:
    runs = runs_of(done)
    means = {name: sum(map(best_validation, each)) / 2 for name, each in runs.items()}
    names = [OWN, "trial-001", "trial-000"]
    ranked = sorted(names, key=lambda name: (-means[name], names.index(name)))
    assert means["trial-001"] > means["trial-000"], "nothing to rank otherwise"
    rows = pq.read_table(done.sweep.folder / CONFIRMED_FILE).to_pylist()
    assert [row["settings"] for row in rows] == ranked
    assert [row["place"] for row in rows] == [1, 2, 3]
    own = [ciders_of_each(run) for run in runs[OWN]]
    for row in rows:
        name = row["settings"]
        assert row["seeds"] == [*SEEDS]
        assert row["validation"] == [*map(best_validation, runs[name])]
        assert row["test"] == [*map(cider_on_test, runs[name])]
        assert row["nearest"] == [
            cider_on_test(run, "nearest image (features)") for run in runs[name]
        ]
        assert row["rank"] == {OWN: None, "trial-001": 1, "trial-000": 2}[name]
        if name == OWN:
            assert row["difference"] is None
            assert row["training.learning_rate"] == done.config.training.learning_rate
            continue
        gaps = [
            score - other
            for run, others in zip(runs[name], own, strict=True)
            for score, other in zip(ciders_of_each(run), others, strict=True)
        ]
        assert row["difference"] == pytest.approx(sum(gaps) / len(gaps))
        assert row["low"] <= row["difference"] <= row["high"]
    assert done.sweep.best == runs[ranked[0]][0], "the winner's, of the first seed"
    leaderboard = pq.read_table(done.sweep.leaderboard).to_pylist()
    for row in leaderboard:
        assert row["confirmed_place"] == ranked.index(row["trial"]) + 1
        assert row["confirmed_validation"] == pytest.approx(means[row["trial"]])
        assert row["confirmed_test"] == pytest.approx(
            np.mean([*map(cider_on_test, runs[row["trial"]])])
        )

    best = configuration.load(done.sweep.best_config)
    winner = {OWN: {}, "trial-000": POINTS[0], "trial-001": POINTS[1]}[ranked[0]]
    expected = done.config.override(winner)
    assert (best.training, best.loss) == (expected.training, expected.loss)
    assert best.tune.confirm is None
    comment = " ".join(
        line.removeprefix("# ")
        for line in done.sweep.best_config.read_text().splitlines()
        if line.startswith("#")
    )
    assert done.sweep.confirmation is not None
    assert comment == done.sweep.confirmation.in_words()
    assert comment in " ".join(done.printed.split())


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_shows_what_was_confirmed(done: Confirmed, tmp_path: Path) -> None:
    folder, page = done.sweep.folder, tmp_path / "page.html"
    assert isinstance(folder, Path)
    found = read_sweep(folder).confirmation
    assert found == done.sweep.confirmation, "the same interval, to the last digit"
    write_report(folder, page)
    html = page.read_text()
    section = html[html.index("<h2>Confirmation</h2>") : html.index("<h2>Leaderboard</h2>")]
    assert found is not None
    assert not isinstance(found, str)
    assert found.in_words().replace("'", "&#39;") in section
    _, rows = found.table()
    assert section.count("<tr>") == 1 + len(rows)
    assert rows[0][3] in section
    assert ">confirmed place<" in html


@pytest.mark.ray
@pytest.mark.slow
def test_settings_with_a_run_that_failed_are_not_ranked(done: Confirmed, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert isinstance(done.sweep.folder, Path)
    shutil.copytree(done.sweep.folder, folder)
    shutil.rmtree(folder / "confirm" / "trial-001-seed-4" / "scored")
    wanted = contenders(done.sweep.results, done.config, folder)
    assert [run.path.name for run in unfinished_runs(wanted)] == ["trial-001-seed-4"]
    found = read_confirmation(wanted, done.config)
    assert found.place("trial-001") is None
    assert found.settings[-1].name == "trial-001"
    assert {found.place(OWN), found.place("trial-000")} == {1, 2}


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_command_again_finds_nothing_to_do(done: Confirmed) -> None:
    assert isinstance(done.sweep.folder, Path)
    before = stamps(done.sweep.folder)
    console = InterruptingConsole("confirmation: ")
    again = run_sweep(done.config, console)
    assert again.confirmation == done.sweep.confirmation
    assert stamps(done.sweep.folder) == before


def trial(number: int, score: float | None, **values: Any) -> TrialResult:
    best = {} if score is None else {"score": score}
    given = {key.replace("__", "."): value for key, value in values.items()}
    objectives = () if score is None else (score,)
    return TrialResult(
        number, f"trial-{number:03d}", given, "completed", True, 1, best, objectives, False, 1.0
    )


def test_the_best_trials_of_other_settings_than_the_files_own_compete(tmp_path: Path) -> None:
    config = Config().override(
        {
            "tune.space": {"loss.tag": {"uniform": [1, 3]}},
            "tune.confirm.top": 2,
            "training.seed": 2**32 - 2,
            "loss.tag": 2,
        }
    )
    assert config.tune.confirm is not None
    assert config.tune.confirm.seeds == 3
    results = [
        trial(7, 0.9, loss__tag=3.0),
        trial(1, 0.8, loss__tag=2.0),
        trial(4, 0.7, loss__tag=1.5),
        trial(5, 0.6, loss__tag=1.2),
        trial(2, None, loss__tag=1.1),
    ]
    wanted = contenders(results, config, tmp_path)
    assert [(one.name, one.rank) for one in wanted] == [
        (OWN, None),
        ("trial-007", 1),
        ("trial-004", 3),
    ]
    assert wanted[0].values == {"loss.tag": 2.0}
    seeds = [2**32 - 1, 0, 1]
    for one in wanted:
        assert [run.path for run in one.runs] == [
            tmp_path / "confirm" / f"{one.name}-seed-{seed}" for seed in seeds
        ]
        assert [own.training.seed for own in one.runs.values()] == seeds
        assert {own.loss.tag for own in one.runs.values()} == {one.values["loss.tag"]}
    # One seed of all settings comes before the next.
    order = [run.path.name.rpartition("-")[2] for run in unfinished_runs(wanted)]
    assert order == [str(seed) for seed in seeds for _ in wanted]
    several = config.override({"tune.objectives": {"recall_5": "max", "seconds_per_report": "min"}})
    (line,) = describe(wanted, several)
    assert line.endswith("; ranked by tag recall@5, the first objective")
    (more, rest) = describe(contenders(results[:2], config, tmp_path), config)
    assert more.endswith("a score and other settings than the file's own is 1")
    assert contenders(results[1:2], config, tmp_path) == []
    assert contenders(results[4:], config, tmp_path) == []
    assert rest.startswith("confirmation: the best trial and the file's own settings with seeds")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune.space.training.seed": {"integer": [0, 9]}}, "training.seed cannot be searched"),
        (
            {"tune.objectives": {"seconds_per_report": "min", "cider": "max"}},
            r"must be score, cider or recall_5 \(max\), not seconds_per_report \(min\)",
        ),
        ({"tune.objectives": {"cider": "min"}}, r"\(max\), not cider \(min\)"),
        (
            # The file's own settings are confirmed too.
            {
                "model.system": "vgg19_tags",
                "tune.space.model.system": {"choice": ["lrcn", "co_attention"]},
            },
            "the score of vgg19_tags is the tag recall@5",
        ),
    ],
)
def test_what_cannot_be_confirmed_is_refused(
    config: Config, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run_sweep(config.override({"run.folder": str(tmp_path), **changes}), Console(quiet=True))
    assert [*tmp_path.iterdir()] == []


def test_a_dataset_with_a_single_test_study_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    films = [
        replace(film, split="test" if number < 1 else "val" if number < 4 else "train")
        for number, film in enumerate(draw(20, 0, 32))
    ]
    prepare_examples(films, tmp_path / "data", source="phantom", image_size=32, split="given")
    changes = {"run.folder": str(tmp_path / "runs"), "data.path": str(tmp_path / "data")}
    with pytest.raises(
        UsageError, match=r"tune\.confirm: needs at least two studies to score .* has 1"
    ):
        run_sweep(config.override(changes), Console(quiet=True))
    assert not RunFolder(tmp_path / "runs").path.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tune.confirm.seeds=1", "tune.confirm.seeds: input should be greater than or equal to 2"),
        ("tune.confirm.top=0", "tune.confirm.top: input should be greater than or equal to 1"),
        ("tune.confirm.seed=3", "tune.confirm.seed: no such key"),
    ],
)
def test_settings_of_the_confirmation_are_checked(given: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        configuration.load(None, [given])
    assert words in str(raised.value)
