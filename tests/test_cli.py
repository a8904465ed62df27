"""The command line as users see it: exit codes, messages, no traceback for their mistakes."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import raymed
from raymed import cli
from raymed.cli import main
from raymed.notices import NOT_FOR_CLINICAL_USE

TINY = ["model.encoder=small", "model.encoder_weights=none", "launch.workers=0"]


@pytest.fixture
def table(tmp_path):
    """A folder with 12 images, and the rows of a valid table about them."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (20, 30), np.uint8)).save(tmp_path / f"{i}.png")
        tags = ["normal"] if i % 2 else ["mass", "effusion"]
        rows.append({"image": f"{i}.png", "report": f"There is mass number {i}.", "tags": tags})
    return tmp_path, rows


def write_table(folder, rows):
    path = folder / "reports.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(folder, rows, *settings):
    out = f"out={folder / 'prepared'}"
    return main(["prepare", "table", write_table(folder, rows), out, "image_size=16", *settings])


def refused(capsys, code, *parts):
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("raymed: ")
    assert "Traceback" not in error
    for part in parts:
        assert part in error


def test_prepare_config_train_evaluate_predict(table, tmp_path, capsys, monkeypatch):
    folder, rows = table
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert prepare(folder, rows, "split=study") == 0
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: {{path: {folder / 'prepared'}}}\nrun: {{folder: {tmp_path / 'runs'}}}\n"
    )
    settings = [*TINY, "model.top_tags=2", "model.hidden_size=8", "model.embedding_size=8"]
    settings += ["training.epochs=2"]
    assert main(["config", str(file), *settings]) == 0
    assert main(["train", str(file), *settings]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    run = str(tmp_path / "runs" / "run")
    assert main(["evaluate", run, "split=val", "generation.max_words=5"]) == 0
    out = capsys.readouterr().out
    for name in ("BLEU-4", "METEOR", "CIDEr", "constant", "nearest", "(features)", "distinct"):
        assert name in out
    longest = max(
        len(sentence.split())
        for report in pq.read_table(f"{run}/val/predictions.parquet")["sentences"].to_pylist()
        for sentence in report
    )
    assert longest <= 5
    assert "The run was trained on 0 of these " in out
    assert re.fullmatch(r"CIDEr [\d.]+(: beats| does not beat) the .*\.", out.splitlines()[-1])
    other = ["evaluate", run, "split=val"]
    refused(capsys, main(other), "generation.max_words: 5 -> 30", "out=FOLDER")
    refused(capsys, main([*other, "loss.tag=3"]), "loss.tag", "out", "data.path")
    assert main([*other, f"out={tmp_path / 'long'}"]) == 0
    assert (tmp_path / "long" / "scores.json").is_file()
    capsys.readouterr()
    bad, figures = str(tmp_path / "run.yaml"), tmp_path / "figures"
    code = main(["predict", run, bad, str(folder / "0.png"), f"out={figures}"])
    refused(capsys, code, "1 of 2 images", bad)
    assert (figures / "0-attention.png").is_file()
    assert main(["predict", run, str(folder), f"out={figures}"]) == 0
    lines = (figures / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(list(folder.glob("*.png")))
    out = capsys.readouterr().out
    assert f"predictions: {figures / 'predictions.jsonl'}" in out
    assert out.count(NOT_FOR_CLINICAL_USE) == len(lines)


def test_a_bad_row_is_listed_with_its_reason_and_the_rest_is_kept(table):
    folder, rows = table
    (folder / "text.png").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    rows += [
        {"image": "text.png", "report": "Clear.", "tags": ["normal"]},
        {"image": "half.png", "report": "Clear.", "tags": ["normal"]},
        {"image": "gone.png", "report": "Clear.", "tags": ["normal"]},
        {"image": "1.png", "report": "Again.", "tags": ["normal"]},
    ]
    for name, report in (("empty.png", ""), ("digits.png", "12 34. 5.")):
        shutil.copy(folder / "0.png", folder / name)
        rows.append({"image": name, "report": report, "tags": ["normal"]})
    assert prepare(folder, rows) == 0
    listed = pq.read_table(folder / "prepared" / "rejected.parquet").to_pydict()
    assert sorted(listed["image_id"]) == sorted(
        ["text.png", "half.png", "gone.png", "1.png", "empty.png", "digits.png"]
    )
    assert all(listed["reason"])
    info = json.loads((folder / "prepared" / "dataset.json").read_text())
    assert sum(info["counts"].values()) == 12


def test_a_missing_column_is_named_beside_the_existing_ones(table, capsys):
    folder, rows = table
    refused(capsys, prepare(folder, rows, "columns.report=text"), "reports.jsonl", "text", "report")


def test_a_single_tag_is_refused(table, capsys):
    folder, rows = table
    rows = [{**row, "tags": ["normal"]} for row in rows]
    refused(capsys, prepare(folder, rows), "tag")
    assert not (folder / "prepared").exists()


def test_a_prepared_dataset_is_only_overwritten_on_request(table, capsys):
    folder, rows = table
    assert prepare(folder, rows) == 0
    before = (folder / "prepared" / "dataset.json").read_text()
    refused(capsys, prepare(folder, rows[:11]), "prepared", "already")
    assert (folder / "prepared" / "dataset.json").read_text() == before
    assert prepare(folder, rows[:11], "overwrite=true") == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["config", "modle.top_tags=3"], ["modle.top_tags", "model.top_tags"]),
        (["config", "model.top_tags=0"], ["model.top_tags", "1", "0"]),
        (["config", "model.encoder=vgg18"], ["model.encoder", "vgg18", "vgg19"]),
        (["config", "gone.yaml"], ["gone.yaml"]),
        (["train", "gone.yaml"], ["gone.yaml"]),
        (["prepare", "phantom"], ["out"]),
        (["prepare", "phantom", "out=x", "studies=-1"], ["studies", "-1"]),
        (["prepare", "table", "gone.csv", "out=x"], ["gone.csv"]),
        (["prepare", "iu-xray", "gone", "out=x"], ["gone"]),
        (["evaluate", "gone"], ["gone", "checkpoint"]),
        (["predict", "gone", "image.png"], ["gone", "checkpoint"]),
        (["table", "1", "gone.yaml"], ["gone.yaml"]),
        (["table", "1", "table.seeds=[0]"], ["FILE is missing", "tune_configs/"]),
        (["figure", "3", "gone"], ["gone", "checkpoint"]),
        (["figure", "3", "split=test", "images="], ["RUN is missing"]),
        (["figure", "3", "gone", "spilt=val"], ["spilt", "split, images, data.path, out"]),
    ],
)
def test_a_mistake_prints_one_message_and_exits_with_2(
    arguments, parts, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    refused(capsys, main(arguments), *parts)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            ["train", "--epochs", "3", "a.yaml"],
            ["--epochs", "settings are written training.epochs=3"],
        ),
        (["train", "a.yaml", "--training.epochs=3"], ["written training.epochs=3\n"]),
        (["--batch-size", "8", "train", "a.yaml"], ["training.batch_size=8\n"]),
        (["train", "a.yaml", "--seed=4"], ["training.seed=4 or tune.seed=4\n"]),
        (["train", "a.yaml", "-lerning_rate=1"], ["training.learning_rate=1"]),
        (["train", "a.yaml", "--resume"], ["--resume", "key=value", "raymed train --help"]),
        (["evaluate", "run", "--split", "val"], ["settings are written split=val\n"]),
        (["prepare", "table", "a.csv", "--image-size", "64"], ["written image_size=64\n"]),
        (["score", "a.json", "--references"], ["written references=...\n"]),
    ],
)
def test_an_option_is_answered_with_the_setting_that_it_was_meant_for(given, parts, capsys):
    with pytest.raises(SystemExit) as ended:
        main(given)
    refused(capsys, ended.value.code, *parts)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("config a.yaml", "loss.tag=1"),
        ("train a.yaml", "data.path=x training.epochs=2"),
        ("tune a.yaml", "data.path=x"),
        ("demo a.yaml", "run.folder=x tune.trials=2"),
        ("doctor a.yaml", "run.folder=x"),
        ("finetune run", "top=1"),
        ("evaluate run", "split=val out=s3://bucket/x?region=y"),
        ("report sweep", "out=x.html"),
        ("prepare table a.csv", "out=x split=study"),
        ("predict run a.png b.png", "out=x generation.beam_width=2"),
        ("score a.json", "references=x"),
        ("compare a.json b.json", "references=x text=none"),
        ("table 1 a.yaml b.yaml", "table.seeds=[1]"),
        ("figure 3 run other", "split=val out=x"),
    ],
)
def test_settings_may_stand_anywhere(arguments, settings, monkeypatch):
    seen = []
    name = arguments.split()[0]
    monkeypatch.setitem(cli.COMMANDS, name, lambda options, _: seen.append(vars(options)))
    words, given = arguments.split(), settings.split()
    for places in itertools.product(range(len(words) + 1), repeat=len(given)):
        mixed = [[word] for word in words] + [[]]
        for place, setting in zip(places, given, strict=True):
            mixed[place].insert(0, setting)
        assert main(list(itertools.chain(*mixed))) == 0
    normal = [{k: sorted(v) if isinstance(v, list) else v for k, v in one.items()} for one in seen]
    assert all(one == normal[0] for one in normal)
    flat = itertools.chain(*(v if isinstance(v, list) else [v] for v in seen[0].values()))
    assert {*words, *given} <= {*flat}


def test_an_example_that_is_not_there_is_answered_with_init(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "tune", "config"):
        code = main([name, "tune_configs/iu_xray.yaml"])
        refused(capsys, code, "tune_configs/iu_xray.yaml: cannot be read", "`raymed init .`")
    refused(capsys, main(["train", "tune_configs/mine.yaml"]), "give a YAML file")
    assert main(["init", "."]) == 0
    capsys.readouterr()
    assert main(["config", "tune_configs/iu_xray.yaml"]) == 0


def test_init_copies_the_examples_and_says_what_to_do_next(tmp_path, capsys, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my folder"]) == 0
    for name in ("tune_configs", "cluster"):
        copied, shipped = tmp_path / "my folder" / name, root / name
        files = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
        assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == files
        assert all((copied / each).read_bytes() == (shipped / each).read_bytes() for each in files)
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("  ")]
    assert commands[0] == ["cd", "my folder"]
    monkeypatch.chdir(tmp_path / "my folder")
    assert main([*commands[1][1:], "workers=0"]) == 0
    for words in commands[2:]:
        files = [word for word in words if word.endswith(".yaml")]
        assert all(main(["config", file]) == 0 for file in files)
    capsys.readouterr()


def test_init_overwrites_nothing(tmp_path, capsys):
    mine = tmp_path / "tune_configs" / "own.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    refused(capsys, main(["init", str(tmp_path)]), f"{mine}: already exists; nothing was copied")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"
    (mine.parent / "smoke.yaml").touch()
    refused(capsys, main(["init", str(tmp_path)]), f"{mine} and 1 more: already exist;")
    mine.parent.rename(tmp_path / "cluster")
    (tmp_path / "tune_configs").write_text("a file of that name")
    refused(capsys, main(["init", str(tmp_path)]), str(tmp_path / "tune_configs"))


def test_invalid_yaml_is_reported_with_file_and_line(tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text("model:\n  top_tags: [3\n")
    refused(capsys, main(["config", str(file)]), "bad.yaml", "line")


def test_a_folder_that_is_not_a_prepared_dataset_is_refused(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{path: {tmp_path}}}\nrun: {{folder: {tmp_path / 'runs'}}}\n")
    refused(capsys, main(["train", str(file), *TINY]), str(tmp_path), "prepare")
    assert not (tmp_path / "runs").exists()


def test_more_top_tags_than_tags_are_refused_before_anything_starts(phantom, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{path: {phantom}}}\nrun: {{folder: {tmp_path / 'runs'}}}\n")
    refused(capsys, main(["train", str(file), *TINY, "model.top_tags=99"]), "model.top_tags", "99")


def test_a_checkpoint_of_another_schema_is_refused(trained, tmp_path, capsys):
    newest = max((trained / "checkpoints").iterdir())
    shutil.copytree(newest, tmp_path / "old")
    content = json.loads((tmp_path / "old" / "checkpoint.json").read_text())
    (tmp_path / "old" / "checkpoint.json").write_text(json.dumps({**content, "schema": 99}))
    refused(capsys, main(["evaluate", str(tmp_path / "old")]), "schema", "99")


def test_a_training_key_cannot_be_set_when_evaluating(trained, capsys):
    refused(capsys, main(["evaluate", str(trained), "loss.tag=3"]), "loss.tag", "generation")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        code = main(["prepare", "phantom", f"out={small / 'data'}", "image_size=64", "studies=100"])
        refused(capsys, code, "no space left", str(small))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_help_and_config_load_neither_torch_nor_ray():
    script = (
        "import sys\n"
        "from raymed.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'ray'} & set(sys.modules), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["prepare", "--help"], ["config"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "set()"
        assert done.stdout


def test_one_version_everywhere(capsys):
    root = Path(__file__).parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"raymed {raymed.__version__}\n"
    assert raymed.__version__ == version
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == version


def test_the_installed_command_exits_with_2(tmp_path):
    command = Path(sys.executable).with_name("raymed")
    done = subprocess.run(
        [command, "train", "gone.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("raymed: gone.yaml")
    assert "Traceback" not in done.stderr


def test_missing_encoder_weights_are_refused_before_anything_starts(phantom, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{path: {phantom}}}\nrun: {{folder: {tmp_path / 'runs'}}}\n")
    settings = ["model.encoder_weights=gone.pth", "launch.workers=2"]
    refused(capsys, main(["train", str(file), *settings]), "model.encoder_weights", "gone.pth")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["training.epochs", "launch.workers", "data.path"])
def test_settings_shared_by_all_trials_cannot_be_searched(key, capsys):
    refused(capsys, main(["config", f"tune.space.{key}={{choice: [1, 2]}}"]), key)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["table.seeds=[]"], ["table.yaml: table.seeds", "at least"]),
        (["table.seeds=[1, 1]"], ["table.yaml: table.seeds", "1 is repeated"]),
        (["table.seeds=[-1]"], ["table.seeds.0", "-1"]),
        (["table.systems.lcrn.loss.tag=2"], ["table.systems.lcrn", "did you mean lrcn?"]),
        (["table.systems.lrcn.loss.tga=2"], ["table.systems.lrcn: loss.tga", "loss.tag?"]),
        (["table.runs.lrcn=[gone]"], ["table.runs.lrcn", "gone"]),
        (["data.path=gone"], ["gone", "prepare"]),
        (["launch.workers=0"], ["launch.workers", "1 or more"]),
        (["model.top_tags=99"], ["model.top_tags", "99"]),
        (["run.name=table.yaml"], ["table.yaml", "is not a table folder", "run.name"]),
        (["run.name=mine"], ["mine", "is not a table folder", "run.name"]),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_anything_is_trained(
    settings, parts, phantom, tmp_path, capsys
):
    file = tmp_path / "table.yaml"
    file.write_text(
        f"data: {{path: {phantom}}}\nrun: {{folder: {tmp_path}}}\nmodel: {{encoder: small, "
        "encoder_weights: none}\n"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, main(["table", "1", str(file), *settings]), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_tables_cannot_share_a_folder(phantom, tmp_path, capsys):
    files = [tmp_path / "iu.yaml", tmp_path / "peir.yaml", tmp_path / "own.yaml"]
    for file, name in zip(files, ("table", "table", "own"), strict=True):
        file.write_text(f"data: {{path: {phantom}}}\nrun: {{name: {name}, folder: {tmp_path}}}\n")
    code = main(["table", "1", *map(str, files), "launch.workers=0"])
    refused(capsys, code, f"{files[0]} and {files[1]} share the folder {tmp_path / 'table'}")
    code = main(["table", "1", *map(str, files[1:]), "launch.workers=0"])
    refused(capsys, code, "launch.workers")


def test_tables_of_two_files_and_their_figures(trained, tmp_path, capsys):
    """From runs that exist already, so that nothing is trained."""
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads(next((trained / "checkpoints").glob("*/checkpoint.json")).read_text())
    data = config["config"]["data"]["path"]
    files = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            f"data: {{path: {data}}}\nrun: {{name: {name}, folder: {tmp_path}}}\n"
            "model: {encoder: small, encoder_weights: none}\n"
            f"table: {{seeds: [0], runs: {{co_attention: [{tmp_path / 'run'}]}}}}\n"
        )
        files.append(str(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymed.tables.paper.TABLE_SYSTEMS", {"3": ["co_attention"]})
        assert main(["table", "3", *files]) == 0
    out = capsys.readouterr().out
    for name in ("one", "two"):
        file = tmp_path / name / "table-3.md"
        assert f"table: {file} (its runs are beside it)" in out
        assert "| co_attention |" in file.read_text()
    assert out.count("Table 3: tag prediction") == 2
    run, drawn = str(tmp_path / "run"), tmp_path / "figures"
    assert main(["figure", "3", run, "split=val", f"out={drawn}"]) == 0
    assert main(["figure", "4", run, "split=val", f"out={drawn}"]) == 0
    listed = capsys.readouterr().out.split()
    assert sorted(listed) == sorted(str(path) for path in drawn.iterdir())
    assert {"figure-3.png", "figure-3.html", "figure-4.html"} < {p.name for p in drawn.iterdir()}
    refused(capsys, main(["figure", "4", run, run]), "figure 4", "one run")
    refused(capsys, main(["figure", "3", run, "images=CXR9"]), "CXR9", "split test")


@pytest.mark.parametrize(
    ("command", "subject"),
    [
        *((name, "FILE") for name in ("train", "tune")),
        ("report", "RUN"),
        ("finetune", "RUN|SWEEP"),
        ("evaluate", "CHECKPOINT"),
    ],
)
def test_a_setting_in_place_of_the_required_argument(command, subject, capsys):
    code = main([command, "training.epochs=1"])
    refused(capsys, code, f"{command}: {subject} is missing; training.epochs=1 was read as a set")


def test_files_and_settings_come_in_any_order(trained, phantom, tmp_path, capsys):
    file = tmp_path / "run=1.yaml"
    file.write_text("model: {top_tags: 3, encoder: small, encoder_weights: none}\n")
    long = f"tune.space.loss.tag={{choice: [{', '.join(map(str, range(200)))}]}}"
    printed = set()
    for order in ([str(file), "loss.tag=2", long], ["loss.tag=2", long, str(file)]):
        assert main(["config", *order]) == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1
    assert "  top_tags: 3\n" in printed.pop()
    # Refused because of its contents, so the file was found.
    for command in ("train", "tune"):
        code = main([command, "data.path=gone", "launch.workers=1", str(file), long])
        refused(capsys, code, "gone: not a prepared dataset")
    code = main(["table", "1", "data.path=gone", "launch.workers=1", str(file)])
    refused(capsys, code, "gone: not a prepared dataset")
    refused(
        capsys,
        main(["report", f"out={tmp_path}/x", str(tmp_path)]),
        "is not a sweep folder: it has no",
    )
    refused(capsys, main(["finetune", "top=2", str(tmp_path)]), "is not a sweep folder")
    assert main(["evaluate", "split=val", f"data.path={phantom}", str(trained)]) == 0
    assert "val/predictions.parquet" in capsys.readouterr().out.replace("\n", "")
