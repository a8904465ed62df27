"""The table commands on tiny phantom runs: made in one go, interrupted, resumed."""

import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray as ray_
from rich.console import Console

from raymed import config as configuration
from raymed.config import Config
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.locks import LOCK_FILE
from raymed.run_folder import CONFIG_FILE
from raymed.tables.make import make_table
from tests.support.long_runs import ENDLESS_S
from tests.support.prepared import prepare_examples

pytestmark = pytest.mark.ray

Stamp = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def config(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("tables")),
            "launch.workers": 1,
            "training.epochs": 2,
            "training.batch_size": 4,
            "table.seeds": [0, 4],
            "table.systems.vgg19_tags": {"training.learning_rate": 0.01},
        }
    )


def make(table: str, config: Config) -> tuple[Path, list[str]]:
    """The Markdown file, and what was printed, line by line."""
    file = io.StringIO()
    path = make_table(table, config, Console(file=file, width=80))
    return path, file.getvalue().splitlines()


def stamps(folder: Path) -> Stamp:
    """Identity and time of change of every file of a run but its configuration's and its lock's."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (CONFIG_FILE, LOCK_FILE)
    }


@dataclass(frozen=True)
class Made:
    """Table 3, made by two commands: the first has one seed only, and one of its runs diverges.

    Attributes:
        file: the Markdown.
        failure: what the first command said in the end.
        finished: stamps of the run that the first command finished.
        printed: by the second.
        stray: files that the first left beside its runs.
    """

    file: Path
    failure: str
    finished: Stamp
    printed: list[str]
    stray: list[str]


FINISHED = "co_attention-seed-0"


@pytest.fixture(scope="module")
def made(config: Config, ray: None) -> Made:  # noqa: ARG001
    folder = Path(config.run.folder) / "made"
    own = config.override({"run.name": "made"})
    diverging = {"table.systems.vgg19_tags.training.learning_rate": 1e30, "table.seeds": [0]}
    # A group's start takes longer than its runs here; that of two is seen once, below.
    failure = refused("3", own.override(diverging | {"tune.groups": 1}))
    stray = sorted(path.name for path in folder.iterdir())
    finished = stamps(folder / "runs" / FINISHED)
    file, printed = make("3", own)
    assert file == folder / "table-3.md"
    return Made(file, failure, finished, printed, stray)


def scores_in(file: Path) -> list[dict[str, object]]:
    rows = pq.read_table(file.with_name(f"{file.stem}-runs.parquet")).to_pylist()
    return [{key: value for key, value in row.items() if key != "folder"} for row in rows]


def trained_without_ray(
    config: Config, folder: Path, systems: tuple[str, ...]
) -> dict[str, object]:
    """The settings of a table of runs that were trained at once, without Ray, and without score."""
    for system in systems:
        for seed in config.table.seeds:
            values = config.table.systems.get(system, {}) | {
                "model.system": system,
                "training.seed": seed,
                "run.folder": str(folder),
                "run.name": f"{system}-seed-{seed}",
                "launch.workers": 0,
            }
            run_training(config.override(values), Console(quiet=True))
    return {
        f"table.runs.{system}": [str(folder / f"{system}-seed-{n}") for n in config.table.seeds]
        for system in systems
    }


def test_a_run_that_failed_is_named_and_the_others_are_finished(made: Made) -> None:
    first, *failures = made.failure.splitlines()
    assert first == (
        f"{made.file.parent}: 1 of 2 runs failed; run the same command again to retry them"
    )
    (line,) = failures
    assert line.startswith("  vgg19_tags-seed-0: failed: training diverged at epoch 1, step 2: ")
    assert "scored/scores.json" in made.finished
    # No table of half the runs, and nothing of Ray's.
    assert made.stray == [".lock", "runs"]


def test_the_next_command_trains_the_missing_runs_and_makes_the_table(
    config: Config, made: Made
) -> None:
    assert made.printed[0] == "1 of 4 runs are finished already"
    assert made.printed[1].startswith("3 runs to train; worker groups: 2, of 1 worker(s) each")
    outcomes = [line.split("s  ", 1)[1] for line in made.printed[2:5]]
    names = ["co_attention-seed-0", "co_attention-seed-4", "vgg19_tags-seed-0", "vgg19_tags-seed-4"]
    assert sorted(line.partition(":")[0] for line in outcomes) == names[1:]
    assert sum(": test tag recall@5 " in line for line in outcomes) == 2
    assert sum(": test CIDEr " in line for line in outcomes) == 1
    runs = made.file.parent / "runs"
    assert sorted(path.name for path in runs.iterdir()) == names
    assert stamps(runs / FINISHED) == made.finished
    for name in names:
        system, _, seed = name.partition("-seed-")
        trained = configuration.load(runs / name / CONFIG_FILE)
        assert (trained.model.system, trained.training.seed) == (system, int(seed))
        rate = 0.01 if system == "vgg19_tags" else config.training.learning_rate
        assert trained.training.learning_rate == rate
    rows = pq.read_table(made.file.with_name("table-3-runs.parquet")).to_pylist()
    assert [Path(row["folder"]).name for row in rows] == [*names[2:], *names[:2]]
    assert [f"{row['system']}-seed-{row['seed']}" for row in rows] == [*names[2:], *names[:2]]
    text = made.file.read_text()
    for part in ("| vgg19_tags |", "| co_attention |", "(0.644)", "24 training and 3 test images"):
        assert part in text
    assert not (made.file.parent / "ray").exists()


def test_the_table_equals_that_of_uninterrupted_runs(
    own: Config, made: Made, tmp_path: Path
) -> None:
    given = trained_without_ray(own, tmp_path / "alone", ("vgg19_tags", "co_attention"))
    file, printed = make("3", own.override(given))
    assert "finished already" not in printed[0], "all were to be scored yet"
    assert scores_in(file) == scores_in(made.file)
    assert file.read_bytes() == made.file.read_bytes()


def test_a_finished_table_is_printed_again_without_training(config: Config, made: Made) -> None:
    before, text = stamps(made.file.parent / "runs"), made.file.read_bytes()
    again, said = make("3", config.override({"run.name": "made"}))
    assert again == made.file
    assert said[0] == "4 of 4 runs are finished already"
    assert said[1:] == made.printed[5:]
    assert stamps(made.file.parent / "runs") == before
    assert made.file.read_bytes() == text


@pytest.mark.slow
def test_another_table_trains_the_missing_runs_although_its_command_is_killed(
    config: Config, made: Made, own: Config, tmp_path: Path
) -> None:
    runs = made.file.parent / "runs"
    before = {path.name: stamps(path) for path in runs.iterdir()}
    new = {f"{system}-seed-4" for system in ("soft_att", "semantic_only", "visual_only")}
    assert not new & set(before)
    settings = {"run.name": "made", "table.seeds": [4], "tune.groups": 1}
    (tmp_path / "table.yaml").write_text(config.override(settings).to_yaml())
    process = subprocess.Popen(
        [Path(sys.executable).with_name("raymed"), "table", "attention", tmp_path / "table.yaml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + ENDLESS_S
    while not scored(runs) & new and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.wait()
    # Its workers die with it.
    until = time.monotonic() + ENDLESS_S
    while ray_.available_resources().get("CPU") != 2 and time.monotonic() < until:
        time.sleep(0.1)
    done = scored(runs) & new
    assert 0 < len(done) < 3
    before |= {name: stamps(runs / name) for name in done}
    file, printed = make("attention", config.override(settings))
    assert printed[0] == f"{1 + len(done)} of 4 runs are finished already"
    assert {path.name for path in runs.iterdir()} == {*before, *new}
    assert {name: stamps(runs / name) for name in before} == before
    lines = file.read_text().splitlines()
    assert "Over the test sentences that name a finding." in lines[2]
    names = [line.split("|")[1].strip() for line in lines[6:]]
    assert names == ["soft_att", "semantic_only", "visual_only", "co_attention"]
    systems = ("soft_att", "semantic_only", "visual_only")
    other = own.override({"table.seeds": [4]})
    given = trained_without_ray(other, tmp_path / "alone", (*systems, "co_attention"))
    expected, _ = make("attention", other.override(given))
    assert scores_in(file) == scores_in(expected)
    assert file.read_bytes() == expected.read_bytes()
    # Beside the first table, which stays.
    assert made.file.is_file()


def scored(runs: Path) -> set[str]:
    """Names of the runs that are finished."""
    return {path.parents[1].name for path in runs.glob("*/scored/scores.json")}


@pytest.fixture
def own(config: Config, tmp_path: Path) -> Config:
    """The same in a folder of its own, for what is refused, or needs no training and so no Ray."""
    return config.override({"run.folder": str(tmp_path), "run.name": "own"})


def refused(table: str, config: Config) -> str:
    with pytest.raises(UsageError) as raised:
        make(table, config)
    return str(raised.value)


def test_a_different_configuration_in_the_same_folder_is_refused_naming_its_keys(
    config: Config, made: Made
) -> None:
    before = stamps(made.file.parent)
    same = config.override({"run.name": "made"})
    message = refused("3", same.override({"training.epochs": 3, "loss.tag": 2}))
    assert "vgg19_tags-seed-0: holds a run with a different configuration (" in message
    assert "loss.tag: 1.0 -> 2.0; training.epochs: 2 -> 3" in message
    # So is one of a single system, though others are the same.
    message = refused("3", same.override({"table.systems.co_attention": {"model.top_tags": 2}}))
    assert "co_attention-seed-0: holds a run with a different configuration" in message
    assert "model.top_tags: 3 -> 2" in message
    assert stamps(made.file.parent) == before


def test_scores_of_an_evaluation_with_other_settings_do_not_enter_the_table(
    config: Config, made: Made
) -> None:
    from raymed.cli import main

    run = made.file.parent / "runs" / "co_attention-seed-0"
    text = made.file.read_bytes()
    assert main(["evaluate", str(run), "split=test", "generation.max_words=1"]) == 0
    make("3", config.override({"run.name": "made"}))
    assert made.file.read_bytes() == text
    shutil.rmtree(run / "test")


def test_given_runs_are_used_and_none_is_trained(own: Config, made: Made) -> None:
    runs = made.file.parent / "runs"
    before = stamps(runs)
    given = {
        f"table.runs.{system}": [str(runs / f"{system}-seed-{seed}") for seed in (0, 4)]
        for system in ("vgg19_tags", "co_attention")
    }
    file, printed = make("3", own.override(given))
    assert printed[0] == "4 of 4 runs are finished already"
    assert file.read_bytes() == made.file.read_bytes()
    assert scores_in(file) == scores_in(made.file)
    assert stamps(runs) == before
    # By then the folder is recognised as a table's.
    assert make("3", own.override(given))[0] == file


def test_a_given_run_is_scored_on_the_test_split_where_it_is_not_yet(
    own: Config, made: Made, tmp_path: Path
) -> None:
    runs = made.file.parent / "runs"
    shutil.copytree(runs / "co_attention-seed-0", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "scored")
    before = stamps(tmp_path / "mine")
    given = {
        "table.runs.co_attention": [str(tmp_path / "mine")],
        "table.runs.vgg19_tags": [str(runs / "vgg19_tags-seed-0")],
    }
    file, printed = make("3", own.override(given))
    assert printed[0] == "1 of 2 runs are finished already"
    after = stamps(tmp_path / "mine")
    assert {name: after[name] for name in before} == before
    taken, theirs = (
        [row for row in scores_in(one) if row["system"] == "co_attention"]
        for one in (file, made.file)
    )
    assert taken == theirs[:1]


@pytest.fixture(scope="module")
def unplaced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dataset that does not say where findings are."""
    folder = tmp_path_factory.mktemp("unplaced")
    films = [replace(film, findings=()) for film in draw(20, seed=9, image_size=32)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare_examples(films, folder / "prepared", source="phantom", image_size=32)
        yield str(folder / "prepared")


def test_runs_that_do_not_fit_are_refused(
    own: Config, made: Made, unplaced: str, tmp_path: Path
) -> None:
    runs = made.file.parent / "runs"
    theirs = runs / "co_attention-seed-0"

    def with_run(path: Path | str, **changes: str) -> str:
        return refused("3", own.override({"table.runs.co_attention": [str(path)], **changes}))

    message = with_run(runs / "vgg19_tags-seed-4")
    assert message.endswith("vgg19_tags-seed-4 is a run of vgg19_tags")
    assert message.startswith("table.runs.co_attention: ")
    message = with_run(theirs, **{"data.path": unplaced})
    assert f"was trained on a different dataset than {unplaced}" in message
    for path in (tmp_path / "gone", runs, theirs / "checkpoints" / "epoch-0002"):
        assert with_run(path) == (
            f"table.runs.co_attention: {path} is not a run folder: it has no checkpoints"
        )
    short = own.override({"run.name": "short", "launch.workers": 0, "training.epochs": 1})
    run_training(short, Console(quiet=True))
    checkpoint = tmp_path / "short" / "checkpoints" / "epoch-0001" / "checkpoint.json"
    checkpoint.write_text(checkpoint.read_text().replace('"epochs": 1', '"epochs": 5'))
    assert with_run(tmp_path / "short").endswith(
        "short is not finished (1 of 5 epochs); resume it with `raymed train`"
    )
    assert not (tmp_path / "own").exists()


def test_attention_needs_to_know_where_findings_are(own: Config, unplaced: str) -> None:
    message = refused("attention", own.override({"data.path": unplaced}))
    assert message.startswith(f"data.path: {unplaced} does not say where any finding is")


def test_a_table_needs_ray_train_workers(own: Config) -> None:
    message = refused("1", own.override({"launch.workers": 0}))
    assert message.startswith("launch.workers: 0 trains in the calling process")
    assert not Path(own.run.folder, "own").exists()


def test_settings_that_do_not_fit_a_system_are_refused_before_training(own: Config) -> None:
    message = refused("3", own.override({"table.systems.co_attention": {"model.top_tags": 99}}))
    assert "model.top_tags: the model is to attend to 99 tags" in message
    assert not Path(own.run.folder, "own").exists()


def test_a_folder_with_other_content_is_left_alone(own: Config, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    message = f"{tmp_path / 'own'}: exists but is not a table folder; choose another run.name"
    assert refused("3", own) == message
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["thesis.txt"]
    # A run folder is not a table folder either.
    shutil.rmtree(tmp_path / "own")
    run_training(own.override({"launch.workers": 0, "training.epochs": 1}), Console(quiet=True))
    assert refused("3", own) == message
    (tmp_path / "file").touch()
    assert refused("3", own.override({"run.name": "file"})).startswith(f"{tmp_path / 'file'}: ")
