"""The page of a sweep of five tiny trials: two completed, one stopped, one failed, one running."""

import csv
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from raymed.cli import main
from raymed.config import SEARCH_DEFAULTS, Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.metrics.baselines import best_constant
from raymed.metrics.cider import cider
from raymed.metrics.normality import describes_normality
from raymed.reports import sweep_plots as plots
from raymed.reports.sweep_page import printable_yaml
from raymed.training.loop import train
from raymed.training.worker import Worker
from raymed.tuning.page import write_report
from raymed.tuning.space import propose
from raymed.tuning.study import REASON, make_study
from tests.support.browser import load, without_policy
from tests.support.recording import Recorder

EPOCHS = 6
KEYS = ["training.learning_rate", "loss.attention", "model.top_tags", "generation.stop_threshold"]
SPACE = {
    "training.learning_rate": {"choice": [0.01, 1e-6, 1e30]},
    "loss.attention": {"log_uniform": [0.001, 0.1], "or": 0},
    "model.top_tags": {"integer": [2, 6]},
    "generation.stop_threshold": {"uniform": [0.3, 0.7]},
}
POINTS = [
    dict(zip(KEYS, point, strict=True))
    for point in (
        (0.01, 0.0, 2, 0.5),
        (0.01, 0.02, 4, 0.4),
        (1e-6, 0.005, 3, 0.6),
        (1e30, 0.0, 3, 0.6),
        (0.01, 0.005, 6, 0.7),
    )
]
STATES = ["completed", "completed", "stopped", "failed", "unfinished"]
NAMES = [f"trial-{number:03d}" for number in range(5)]


class Ended(Exception):
    """A trial is over after its first epoch."""


@pytest.fixture(scope="module")
def config(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return learner.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("sweeps")),
            "run.name": "sweep",
            "training.epochs": EPOCHS,
            "launch.workers": 1,
            "tune.trials": 7,
            "tune.objectives": {"score": "max", "seconds_per_report": "min"},
            "tune.points_to_evaluate": POINTS,
            "tune.space": SPACE,
        }
    )


@pytest.fixture(scope="module")
def sweep(config: Config) -> Path:
    """The folder of the sweep, as it is while the last trial runs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(config.run.folder) / "sweep"
    folder.mkdir()
    (folder / "sweep.yaml").write_text(config.to_yaml())
    study = make_study(config, folder)
    for name, state in zip(NAMES, STATES, strict=True):
        trial = study.ask()
        rows: list[dict[str, float]] = []

        def report(row: dict[str, float], state: str = state, rows: list[Any] = rows) -> None:
            rows.append(row)
            if state in ("stopped", "unfinished"):
                raise Ended

        run = config.override(
            {**propose(trial, config.tune.space), **SEARCH_DEFAULTS, "run.name": name}
        )
        if state == "completed":
            train(
                run,
                folder / "trials" / name,
                Worker(torch.device("cpu")),
                Recorder(report),
            )
            best = max(rows, key=lambda row: (row["score"], -row["loss"]))
            study.tell(trial, [best["score"], best["seconds_per_report"]])
            continue
        with pytest.raises(UsageError if state == "failed" else Ended):
            train(
                run,
                folder / "trials" / name,
                Worker(torch.device("cpu")),
                Recorder(report),
            )
        if state == "failed":
            trial.set_user_attr(REASON, "diverged </script><script>alert(1)</script>")
        if state != "unfinished":
            study.tell(trial, state=TrialState.PRUNED if state == "stopped" else TrialState.FAIL)
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path) -> Path:
    write_report(sweep, sweep / "report.html")
    return sweep / "report.html"


@pytest.fixture(scope="module")
def metrics(sweep: Path) -> dict[str, list[dict[str, float]]]:
    """Rows of each trial that has any, read by the csv module alone."""
    tables = {name: sweep / "trials" / name / "metrics.csv" for name in NAMES}
    return {
        name: [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(table.read_text().splitlines())
        ]
        for name, table in tables.items()
        if table.exists()
    }


@pytest.fixture(scope="module")
def figures(page: Path) -> list[dict[str, Any]]:
    """The figures as they stand in the page."""
    (line,) = (text for text in page.read_text().splitlines() if "].forEach((figure" in text)
    found: list[dict[str, Any]] = json.loads(line.partition(".forEach(")[0])
    return found


def best(rows: list[dict[str, float]]) -> dict[str, float]:
    found = rows[0]
    for row in rows:
        better = row["score"] > found["score"]
        if better or (row["score"] == found["score"] and row["loss"] < found["loss"]):
            found = row
    return found


def order(metrics: dict[str, list[dict[str, float]]]) -> list[str]:
    """The trials with a score from the best to the worst."""
    return sorted(metrics, key=lambda name: (-best(metrics[name])["score"], name))


def leaderboard(page: Path) -> list[dict[str, str]]:
    """The rows of the page's leaderboard by their heads."""
    table = page.read_text().partition('<table id="leaderboard">')[2].partition("</table>")[0]
    heads = [head.replace("<wbr>", "") for head in re.findall("<button>(.*?)</button>", table)]
    rows = re.findall("<tr.*?>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    values = [re.findall('data-value="(.*?)">', row) for row in rows]
    return [dict(zip(heads, map(unescape, row), strict=True)) for row in values]


def names_of(figure: dict[str, Any]) -> list[str]:
    return [line["name"] for line in figure["data"] if line["mode"].startswith("lines")]


def test_the_leaderboard_holds_every_trial_once(
    page: Path, metrics: dict[str, list[dict[str, float]]]
) -> None:
    rows = leaderboard(page)
    assert [row["trial"] for row in rows] == [*order(metrics), "trial-003"]
    assert [row["place"] for row in rows] == ["1", "2", "3", "4", "5"]
    for row in rows:
        number = NAMES.index(row["trial"])
        assert row["state"] == STATES[number]
        assert {key: float(row[key]) for key in KEYS} == POINTS[number]
        epochs = metrics.get(row["trial"], [])
        assert int(row["epochs"]) == len(epochs)
        if epochs:
            assert float(row["CIDEr"]) == best(epochs)["cider"]
            assert float(row["tag recall@5"]) == best(epochs)["recall_5"]
            assert float(row["seconds per report"]) == best(epochs)["seconds_per_report"]
            assert float(row["seconds"]) == pytest.approx(sum(r["seconds"] for r in epochs))
    failed = rows[-1]
    assert failed["CIDEr"] == ""
    assert failed["reason"] == "diverged </script><script>alert(1)</script>"
    assert "<script>alert" not in page.read_text(), "what trials say is text"


def test_the_summary_counts_trials_and_stands_the_best_beside_the_baselines(
    page: Path, config: Config, metrics: dict[str, list[dict[str, float]]]
) -> None:
    html = page.read_text()
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    counts = "2 completed, 1 stopped, 1 failed, 1 unfinished"
    assert facts["trials"] == f"5 of 7: {counts}"
    assert facts["searched for"].startswith("CIDEr (max), seconds per report (min)")
    assert facts["torch"] == torch.__version__
    scores = dict(re.findall('<td class="text">([^<]*?)</td><td>(.*?)</td>', html))
    first = order(metrics)[0]
    assert scores[f"best trial: {first}"] == f"{best(metrics[first])['cider']:.3f}"
    dataset = PreparedDataset.open(config.data.path)
    truth = dataset.split("val").references
    constant = cider(truth, [best_constant(dataset.split("train").references)] * len(truth))
    assert scores["constant report"] == f"{constant:.3f}"
    assert "nearest image" in scores


def test_history_learning_curves_and_pareto_front_show_what_trials_reported(
    figures: list[dict[str, Any]], metrics: dict[str, list[dict[str, float]]]
) -> None:
    history, learning, pareto = figures[0], figures[1], figures[-1]
    scores = {name: best(rows)["score"] for name, rows in metrics.items()}
    completed, so_far, others = history["data"]
    assert dict(zip(completed["text"], completed["y"], strict=True)) == {
        name: scores[name] for name in NAMES[:2]
    }
    assert so_far["y"] == [scores[NAMES[0]], *[max(scores[n] for n in NAMES[:2])] * 4]
    assert dict(zip(others["text"], others["y"], strict=True)) == {
        name: scores[name] for name in (NAMES[2], NAMES[4])
    }

    assert names_of(learning) == list(reversed(order(metrics))), "the best lies on top"
    for line in learning["data"]:
        rows = metrics[line["name"]]
        assert line["x"] == [row["epoch"] for row in rows]
        assert line["y"] == [row["score"] for row in rows]
    assert learning["data"][-1]["line"]["color"] == plots.BEST

    points = {
        name: (best(metrics[name])["score"], best(metrics[name])["seconds_per_report"])
        for name in NAMES[:2]
    }
    front = {
        name
        for name, (score, seconds) in points.items()
        if not any(
            other_score >= score and other_seconds <= seconds and other != name
            for other, (other_score, other_seconds) in points.items()
        )
    }
    dominated, on_front = pareto["data"]
    assert set(on_front["text"]) == front
    assert set(dominated["text"]) == set(points) - front
    for trace in (dominated, on_front):
        for name, x, y in zip(trace["text"], trace["x"], trace["y"], strict=True):
            assert (x, y) == points[name]


def test_threshold_curves_are_those_of_the_best_checkpoints(
    sweep: Path, figures: list[dict[str, Any]], metrics: dict[str, list[dict[str, float]]]
) -> None:
    lines = figures[-2]
    assert names_of(lines) == list(reversed(order(metrics)))
    points = iter(lines["data"][len(metrics) :])
    for line, point in zip(lines["data"], points, strict=False):
        epoch = int(best(metrics[line["name"]])["epoch"])
        folder = sweep / "trials" / line["name"] / "checkpoints" / f"epoch-{epoch:04d}"
        curve = json.loads((folder / "checkpoint.json").read_text())["curve"]
        drawn = dict(zip(line["x"], line["y"], strict=True))
        assert drawn == {row["stop_threshold"]: row["cider"] for row in curve}
        threshold = POINTS[NAMES.index(line["name"])]["generation.stop_threshold"]
        assert point["x"] == [threshold]
        assert point["y"] == [drawn[threshold]], "a trial's own threshold is on its curve"


def test_slices_and_parallel_coordinates_show_a_key_with_or_as_one(
    figures: list[dict[str, Any]], metrics: dict[str, list[dict[str, float]]]
) -> None:
    parallel, *slices = figures[2:7]
    low, high = SPACE["loss.attention"]["log_uniform"]  # type: ignore[index]
    zero = low * (low / high) ** 0.15
    assert [one["layout"]["xaxis"]["title"]["text"] for one in slices] == KEYS
    for key, one in zip(KEYS, slices, strict=True):
        (trace,) = one["data"]
        for name, x, y in zip(trace["text"], trace["x"], trace["y"], strict=True):
            value = POINTS[NAMES.index(name)][key]
            shown = zero if (key, value) == ("loss.attention", 0) else value
            assert float(x) == pytest.approx(shown)
            assert y == best(metrics[name])["score"]
        assert sorted(trace["text"]) == NAMES[:2]
    axis = slices[1]["layout"]["xaxis"]
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert ticks.pop("0") == pytest.approx(zero)
    assert all(float(text) == pytest.approx(value) for text, value in ticks.items())

    sorted_keys = sorted(KEYS)
    assert parallel["layout"]["xaxis"]["ticktext"] == [
        "CIDEr",
        *(key.replace(".", ".<br>") for key in sorted_keys),
    ]
    lines = [dict(line["customdata"]) for line in parallel["data"] if line["mode"] == "lines"]
    shown = [{key: float(line[key]) for key in KEYS} for line in lines]
    assert sorted(shown, key=str) == sorted(POINTS[:2], key=str)
    ends = [line["y"][1 + sorted_keys.index("loss.attention")] for line in parallel["data"]]
    assert sorted(ends) == [0, 1]


def test_the_best_trials_reports_stand_beside_the_truth(page: Path, config: Config) -> None:
    split = PreparedDataset.open(config.data.path).split("val")
    abnormal = [
        name
        for name, sentences, tags in zip(split.image_ids, split.sentences, split.tags, strict=True)
        if tags != ["normal"] and not all(describes_normality(s) for s in sentences)
    ]
    assert abnormal
    html = page.read_text()
    assert [name for name in re.findall("<h2>(.*?)</h2>", html) if name in split.image_ids] == (
        abnormal[:4]
    )
    for sentence in split.sentences[split.image_ids.index(abnormal[0])]:
        assert f"<li>{sentence}</li>" in html
    assert html.count('aria-label="Visual attention of sentence 1:') == len(abnormal[:4])


def test_a_sweep_whose_dataset_and_checkpoints_are_elsewhere(
    sweep: Path, config: Config, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    (away / "trials" / NAMES[0]).mkdir(parents=True)
    (away / "optuna.journal").write_bytes((sweep / "optuna.journal").read_bytes())
    table = (sweep / "trials" / NAMES[0] / "metrics.csv").read_text()
    (away / "trials" / NAMES[0] / "metrics.csv").write_text(table)
    gone = str(tmp_path / "gone")
    (away / "sweep.yaml").write_text(config.override({"data.path": gone}).to_yaml())
    write_report(away, tmp_path / "page.html")
    html = unescape((tmp_path / "page.html").read_text())
    assert "1 cannot be opened; the first: " in html
    assert "not a checkpoint: it has no checkpoint.json" in html
    assert '<td class="text">constant report' not in html
    assert len(leaderboard(tmp_path / "page.html")) == 5


def test_the_command_prints_the_pages_path_and_refuses_what_is_no_sweep(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(sweep), f"out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.stat().st_size > 4e6, "plotly.js is in it"
    assert out.read_text().count("plotly.js v") == 1, "once"
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a sweep folder: it has no sweep.yaml" in capsys.readouterr().err
    assert main(["report", str(sweep), "split=test"]) == 2
    assert "split=test: cannot be set here; only out=FILE can" in capsys.readouterr().err


def test_a_sweep_of_which_no_trial_has_started(config: Config, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(config.to_yaml())
    make_study(config, tmp_path)
    with pytest.raises(UsageError, match="no trial of the sweep has started"):
        write_report(tmp_path, tmp_path / "page.html")


def test_the_databases_password_is_not_passed_on(config: Config) -> None:
    url = "postgresql://ann:s3cret@host:5432/studies?sslpassword=s3cret2"
    text = printable_yaml(config.override({"tune.storage": url}))
    assert "s3cret" not in text
    assert "storage: postgresql://ann:***@host:5432/studies\n" in text
    assert printable_yaml(config) == config.to_yaml()


@pytest.mark.browser
def test_in_a_browser(
    page: Path, figures: list[dict[str, Any]], metrics: dict[str, Any], tmp_path: Path
) -> None:
    seen = (
        "(async () => ({"
        "plots: [...document.querySelectorAll('.plots > div')].map(plot => ["
        " plot.querySelectorAll('.main-svg').length > 0, plot.data.length,"
        " plot.getBoundingClientRect().width > 250]),"
        "asked: performance.getEntriesByType('resource').map(entry => entry.name),"
        "wide: [document.documentElement.scrollWidth, innerWidth],"
        "buttons: [...new Set([...document.querySelectorAll('.modebar-btn')]"
        " .map(one => one.dataset.title))],"
        "pictures: await Promise.all([...document.querySelectorAll('image, img')]"
        " .map(one => one.decode().then(() => 1, () => 0))),"
        "png: (await Plotly.toImage('plot-0', { format: 'png' })).slice(0, 22),"
        "orders: [...document.querySelectorAll('#leaderboard button')].map(button => ["
        " button.textContent, ...[0, 1].map(() => { button.click();"
        " return [...document.querySelectorAll('#leaderboard tbody tr')]"
        " .map(row => row.cells[1].textContent) })])}))()"
    )
    loaded = load(page, seen, tmp_path, "--window-size=1280,800")
    value = loaded.value
    assert loaded.console == [], "its policy forbids nothing that it does, and no error is met"
    assert value["plots"] == [[True, len(one["data"]), True] for one in figures]
    assert value["wide"][0] <= value["wide"][1], "nothing to scroll sideways on a laptop"
    assert value["asked"] == []
    assert value["pictures"]
    assert all(value["pictures"])
    assert value["png"] == "data:image/png;base64,"
    assert "Download plot as a PNG" in value["buttons"]
    assert not any("hare" in button or "loud" in button for button in value["buttons"])

    orders = {head: (up, down) for head, up, down in value["orders"]}
    by_score = order(metrics)
    up, down = orders["CIDEr"]
    assert [best(metrics[name])["cider"] for name in up[:4]] == sorted(
        best(metrics[name])["cider"] for name in by_score
    )
    assert up[4] == down[4] == "trial-003", "what has no score comes last either way"
    assert orders["trial"] == (NAMES, NAMES[::-1])

    free = without_policy(page, tmp_path / "free.html")
    requests = "performance.getEntriesByType('resource').map(entry => entry.name)"
    assert load(free, requests, tmp_path).value == [], "nor does it ask when it may"


@pytest.mark.browser
def test_the_policy_holds_and_its_breach_is_seen(page: Path, tmp_path: Path) -> None:
    fetched = "fetch('http://127.0.0.1:9/').then(() => 1, () => 0)"
    loaded = load(page, fetched, tmp_path)
    assert loaded.value == 0
    assert any("Content Security Policy" in line for line in loaded.console)
