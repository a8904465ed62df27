"""The ``raymed`` command. Loads torch and Ray only once a command needs them."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rich
from rich.console import Console

from raymed import config as configuration
from raymed.data.sources import SOURCES, load_settings
from raymed.errors import UsageError
from raymed.launch.termination import STATUS, Terminated, leaving
from raymed.prepare_help import prepare_help
from raymed.storage import Place, is_uri, place

if TYPE_CHECKING:
    from raymed.training.checkpoint import Checkpoint

OVERRIDES = "settings as key=value, such as training.epochs=5, before or after the file"

SUBJECTS = {
    **dict.fromkeys(("train", "tune", "demo"), "file"),
    **dict.fromkeys(("evaluate", "predict"), "checkpoint"),
    "report": "run",
    "finetune": "sweep",
}
"""What each command is of, as its arguments call it; the others do without, or say so."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it went well, 1 if `doctor` found what stops training, 2 for a mistake of the user's,
        130 if interrupted by Ctrl-C, 143 by SIGTERM.
    """
    options = _parser().parse_args(_settings_last(sys.argv[1:] if arguments is None else arguments))
    command: Callable[[argparse.Namespace, Console], int | None] = options.command
    # What ended by a signal has left, besides what was there before.
    left = (
        "what was written stays good, and the same command goes on from it"
        if options.resumes
        else "no file was left half-written; the same command begins anew"
    )
    try:
        _refuse_missing(options)
        with leaving():
            return command(options, rich.get_console()) or 0
    except UsageError as error:
        print(f"raymed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"raymed: interrupted; {str(interrupt) or left}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"raymed: ended by SIGTERM; {left}", file=sys.stderr)
        return STATUS
    except BrokenPipeError:
        # The reader of our output has left, as `| head` does; so nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _settings_last(arguments: Sequence[str]) -> list[str]:
    """Files and the like, then settings: a person may give them in any order."""
    return sorted(arguments, key=_is_setting)


def _refuse_missing(options: argparse.Namespace) -> None:
    """See that what a command is of is there, and not a setting in its place."""
    subject = SUBJECTS.get(options.name)
    if subject and _is_setting(given := getattr(options, subject)):
        raise UsageError(
            f"{options.name}: no {subject.upper()} is given; {given} is taken for a setting, since "
            "there is no such file or folder"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raymed",
        description="Train models that look at a medical image and write its report, on Ray.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace, Console], int | None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        resumes = command in (_train, _tune, _finetune, _table)
        sub.set_defaults(command=command, name=name, resumes=resumes)
        return sub

    sub = add("config", _config, "print the complete configuration that a file stands for")
    sub.add_argument("file", nargs="?", metavar="FILE", help="a YAML file; none: the defaults")
    sub.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDES)

    sub = add("prepare", _prepare, "make a prepared dataset of images and reports")
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    sub.epilog = prepare_help()
    sub.add_argument("source", choices=tuple(SOURCES), metavar="SOURCE", help=", ".join(SOURCES))
    sub.add_argument(
        "settings", nargs="*", metavar="PATH|key=value", help="the source's path, and settings"
    )

    sub = add("train", _train, "train one run, or take it up where it stopped")
    sub.add_argument("file", metavar="FILE", help="a YAML file, such as those in tune_configs/")
    sub.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDES)

    sub = add("tune", _tune, "search the keys of tune.space; rank the trials by CIDEr")
    sub.add_argument("file", metavar="FILE", help="a YAML file with a tune section")
    sub.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDES)

    sub = add("report", _report, "write a sweep's page: plots, leaderboard, the best reports")
    sub.add_argument("run", metavar="RUN", help="a sweep's folder, finished or not")
    sub.add_argument("settings", nargs="*", metavar="out=FILE", help="else RUN/report.html")

    sub = add("finetune", _finetune, "train a sweep's best trials on, with the encoder unfrozen")
    sub.add_argument("sweep", metavar="SWEEP", help="a sweep's folder")
    sub.add_argument(
        "settings", nargs="*", metavar="key=value", help=f"top=3 (how many trials), and {OVERRIDES}"
    )

    sub = add("evaluate", _evaluate, "score a checkpoint on a split, beside the baselines")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or a checkpoint's")
    sub.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="split=test (or val, train), out=FOLDER (else CHECKPOINT/SPLIT), data.path and "
        "generation keys",
    )

    sub = add("predict", _predict, "write the report of images, with an attention figure each")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or a checkpoint's")
    sub.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, and folders, of which all images are taken, those in folders below "
        "too; out=FOLDER (else predictions) for predictions.jsonl and the figures, and generation "
        "keys as key=value",
    )

    sub = add("table", _table, "train what a table of the paper needs, and print it")
    sub.add_argument("table", choices=("1", "2", "3", "attention"), help="which table")
    sub.add_argument(
        "files",
        nargs="+",
        metavar="FILE|key=value",
        help="YAML files with a table section, one for each dataset; and settings",
    )

    sub = add("figure", _figure, "draw figure 3 (several runs) or 4 (one) as PNG and as HTML")
    sub.add_argument("figure", choices=("3", "4"), help="3: reports compared; 4: attention")
    sub.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|key=value",
        help="runs' folders; split=test, images=ID,ID (else the first with an abnormality), "
        "data.path and out=FOLDER",
    )

    sub = add("doctor", _doctor, "what is here to train with, and what is wrong with it")
    sub.add_argument("file", nargs="?", metavar="FILE", help="a YAML file; none: the defaults")
    sub.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="launch.address, run.folder",
    )

    sub = add("demo", _demo, "the whole main job on phantom studies, in a few minutes")
    sub.add_argument("file", metavar="FILE", help="a sweep's YAML file: tune_configs/demo.yaml")
    sub.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDES)
    return parser


def _config(options: argparse.Namespace, console: Console) -> None:
    console.file.write(_of_file_or_defaults(options).to_yaml(comments=True))


def _of_file_or_defaults(options: argparse.Namespace) -> configuration.Config:
    given = [options.file] if options.file else []
    is_setting = bool(given) and _is_setting(given[0])
    file = None if is_setting or not given else given[0]
    settings = [*(given if is_setting else []), *options.settings]
    return configuration.load(file, settings)


def _prepare(options: argparse.Namespace, console: Console) -> None:
    source = SOURCES[options.source]
    paths = [text for text in options.settings if not _is_setting(text)]
    given = [text for text in options.settings if _is_setting(text)]
    if source.propose and len(paths) == 1 and not any(map(_is_out, given)):
        path = Path(paths[0])
        settings = load_settings(source.name, [*given, f"out=data/{path.stem}"])
        return _say(console, "\n".join(source.propose(path, settings)))
    settings = load_settings(source.name, given)
    if len(paths) != bool(source.path):
        raise UsageError(
            f"prepare {source.name}: expected {'one' if source.path else 'no'} path, found "
            f"{len(paths)} ({' '.join(paths) or 'none'})"
        )
    from raymed.launch.prepare import run_prepare

    run_prepare(source.name, paths[0] if paths else None, settings, console)


def _quoted(where: Place) -> str:
    """A place as a shell takes it: a URI's options have signs that mean something there."""
    return shlex.quote(str(where))


def _train(options: argparse.Namespace, console: Console) -> None:
    config = configuration.load(options.file, options.settings)
    from raymed.launch.run import run_training

    checkpoint = run_training(config, console)
    best = checkpoint.history[-1]
    score = f"{'CIDEr' if 'cider' in best else 'recall@5'} {best['score']:.3f}"
    _say(
        console,
        f"best: epoch {checkpoint.epoch}, validation {score}: {checkpoint.path}\n"
        f"next: raymed evaluate {_quoted(checkpoint.path.parent.parent)} split=test",
    )


def _tune(options: argparse.Namespace, console: Console) -> None:
    config = configuration.load(options.file, options.settings)
    from raymed.tuning.sweep import run_sweep

    sweep = run_sweep(config, console)
    _say(
        console,
        f"leaderboard: {sweep.leaderboard}\nbest configuration: {sweep.best_config}\n"
        f"best trial: {sweep.best}\nnext: raymed report {_quoted(sweep.folder)}\n"
        f"  or: raymed evaluate {_quoted(sweep.best)} split=test\n"
        f"  or: raymed train {_quoted(sweep.best_config)}",
    )


def _report(options: argparse.Namespace, console: Console) -> None:
    outs = [s.removeprefix("out=") for s in options.settings if s.startswith("out=")]
    if len(outs) < len(options.settings):
        other = next(s for s in options.settings if not s.startswith("out="))
        raise UsageError(f"{other}: cannot be set here, only out=FILE")
    from raymed.tuning.report import write_report

    page = place(outs[-1]) if outs else place(options.run) / "report.html"
    write_report(place(options.run), page)
    _say(console, str(page))


def _finetune(options: argparse.Namespace, console: Console) -> None:
    tops = [s.removeprefix("top=") for s in options.settings if s.startswith("top=")]
    others = [s for s in options.settings if not s.startswith("top=")]
    top = tops[-1] if tops else "3"
    if not top.isdecimal() or int(top) < 1:
        raise UsageError(f"top: must be a number of trials from 1 up, not {top!r}")
    from raymed.tuning.finetune import fine_tune

    best = max(fine_tune(place(options.sweep), int(top), others, console), key=lambda r: r.score)
    _say(console, f"best: {best.folder}\nnext: raymed evaluate {_quoted(best.folder)} split=test")


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    own, others = _taken(options.settings, "split", "out")
    from raymed.evaluation import PREDICTIONS_FILE, SCORES_FILE, evaluate

    checkpoint = _open_checkpoint(options.checkpoint)
    allowed = ("split", "out", "data.path", "generation.")
    config = configuration.altered(checkpoint.config, others, allowed)
    split = own.get("split", "test")
    out = place(own.get("out") or place(options.checkpoint) / split)
    evaluation = evaluate(checkpoint, config, split, out)
    console.print(evaluation.table())
    for note in evaluation.notes():
        _say(console, note)
    _say(console, f"predictions: {out / PREDICTIONS_FILE}\nscores: {out / SCORES_FILE}")


def _predict(options: argparse.Namespace, console: Console) -> None:
    settings = [s for s in options.images if _is_setting(s)]
    images = [s for s in options.images if s not in settings]
    own, others = _taken(settings, "out")
    if not images:
        raise UsageError("predict: no image is given")
    from raymed.prediction import PREDICTIONS_FILE, predict, print_prediction

    checkpoint = _open_checkpoint(options.checkpoint)
    config = configuration.altered(checkpoint.config, others, ("out", "generation."))
    out = place(own.get("out", "predictions"))
    for prediction in predict(checkpoint, config, images, out, partial(_say, console)):
        print_prediction(prediction, console)
    _say(console, f"predictions: {out / PREDICTIONS_FILE}")


def _taken(settings: Sequence[str], *keys: str) -> tuple[dict[str, str], list[str]]:
    """A command's own settings among ``key=value`` texts, the last of each, and the others."""
    own: dict[str, str] = {}
    others = []
    for text in settings:
        key, equals, value = text.partition("=")
        if equals and key in keys:
            own[key] = value
        else:
            others.append(text)
    return own, others


def _table(options: argparse.Namespace, console: Console) -> None:
    settings = [s for s in options.files if _is_setting(s)]
    files = [s for s in options.files if s not in settings]
    if not files:
        raise UsageError("table: no file is given, such as tune_configs/table_phantom.yaml")
    configs = [configuration.load(file, settings) for file in files]
    folders = [place(config.run.folder) / config.run.name for config in configs]
    for folder in folders:
        sharing = [file for file, own in zip(files, folders, strict=True) if own == folder]
        if len(sharing) > 1:
            raise UsageError(
                f"run.name: {' and '.join(sharing)} share the folder {folder}; give each its own"
            )
    from raymed.tables.make import make_table

    made = [make_table(options.table, config, console) for config in configs]
    _say(console, "\n".join(f"written: {file} and its runs beside it" for file in made))


def _figure(options: argparse.Namespace, console: Console) -> None:
    runs = [s for s in options.runs if not _is_setting(s)]
    settings = dict(s.split("=", 1) for s in options.runs if s not in runs)
    known = {"split": "test", "images": "", "data.path": None, "out": "figures"}
    for key in settings:
        if key not in known:
            raise UsageError(f"{key}: no such key; figure takes {', '.join(known)}")
    if not runs:
        raise UsageError("figure: no run is given")
    values = {**known, **settings}
    from raymed.figures import make_figure

    files = make_figure(
        options.figure,
        runs,
        values["data.path"],
        str(values["split"]),
        str(values["images"]),
        place(str(values["out"])),
    )
    _say(console, "\n".join(map(str, files)))


def _doctor(options: argparse.Namespace, console: Console) -> int:
    config = _of_file_or_defaults(options)
    from raymed.doctor import examine, report

    return report(examine(config), partial(_say, console))


def _demo(options: argparse.Namespace, console: Console) -> None:
    config = configuration.load(options.file, options.settings)
    from raymed.demo import run_demo

    run_demo(config, console)


def _is_out(text: str) -> bool:
    return text.startswith("out=")


def _is_setting(text: str) -> bool:
    """Whether it is ``key=value``, and not a place with a ``=`` in its name."""
    # Not pathlib's: it raises an error where a setting is too long to be a file's name.
    key, equals, _ = text.partition("=")
    return bool(equals) and not is_uri(key) and not os.path.exists(text)


def _say(console: Console, lines: str) -> None:
    """Print as it is: a path is to be copied, so it is neither wrapped nor read as markup."""
    console.print(lines, highlight=False, markup=False, soft_wrap=True)


def _open_checkpoint(path: str) -> "Checkpoint":
    from raymed.training.checkpoint import Checkpoint

    return Checkpoint.open(path)
