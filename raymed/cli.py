"""The ``raymed`` command. Loads torch and Ray only once a command needs them."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rich
from rich.console import Console

from raymed import config as configuration
from raymed.arguments import parse
from raymed.data.sources import load_settings, load_source
from raymed.errors import UsageError
from raymed.examples import copy_examples, example, what_next
from raymed.launch.signals import STATUS, Terminated, raise_on_signals
from raymed.metrics.table import ranked_score
from raymed.storage import AnyPath, as_path, is_uri

if TYPE_CHECKING:
    from raymed.run_folder import RunFolder
    from raymed.scoring import Request
    from raymed.training.checkpoint import Checkpoint

SUBJECTS = {
    **dict.fromkeys(("train", "tune"), "file"),
    **dict.fromkeys(("evaluate", "predict", "export"), "checkpoint"),
    "score": "predictions",
    "compare": "b",
    "report": "run",
    "finetune": "run|sweep",
}
"""The argument that each of these commands works on; it must not be a setting."""
RESUMABLE = ("train", "tune", "finetune", "table")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if `doctor` found an error, 2 for a mistake of the user's, 130 if
        interrupted by Ctrl-C, 143 by SIGTERM.
    """
    options = parse(COMMANDS, _settings_last(sys.argv[1:] if arguments is None else arguments))
    aftermath = (
        "what was written is intact; run the same command again to resume"
        if options.name in RESUMABLE
        else "no partial file was left; run the same command again to start over"
    )
    try:
        _require_subject(options)
        with raise_on_signals():
            return options.command(options, rich.get_console()) or 0
    except UsageError as error:
        print(f"raymed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"raymed: interrupted; {str(interrupt) or aftermath}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"raymed: ended by SIGTERM; {aftermath}", file=sys.stderr)
        return STATUS
    except BrokenPipeError:
        # Whoever read our output has gone, as with `| head`, so there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _settings_last(arguments: Sequence[str]) -> list[str]:
    """Reorder so that files and folders come before settings; users may mix them."""
    return sorted(arguments, key=_is_setting)


def _require_subject(options: argparse.Namespace) -> None:
    """Check that a command was given what it works on, and not a setting in its place."""
    subject = SUBJECTS.get(options.name)
    if subject and _is_setting(given := getattr(options, subject.replace("|", "_or_"))):
        raise UsageError(
            f"{options.name}: {subject.upper()} is missing; {given} was read as a setting, because "
            "no such file or folder exists"
        )


def _config(options: argparse.Namespace, console: Console) -> None:
    console.file.write(_load_optional_file(options).to_yaml(comments=True))


def _load_optional_file(
    options: argparse.Namespace, default: Path | None = None
) -> configuration.Config:
    given = [options.file] if options.file else []
    is_setting = bool(given) and _is_setting(given[0])
    file = default if is_setting or not given else given[0]
    settings = [*(given if is_setting else []), *options.settings]
    return configuration.load(file, settings)


def _prepare(options: argparse.Namespace, console: Console) -> None:
    source = load_source(options.source)
    paths = [text for text in options.settings if not _is_setting(text)]
    given = [text for text in options.settings if _is_setting(text)]
    if source.propose and len(paths) == 1 and not any(map(_is_out, given)):
        path = Path(paths[0])
        settings = load_settings(source.name, [*given, f"out=data/{path.stem}"])
        return _print(console, "\n".join(source.propose(path, settings)))
    settings = load_settings(source.name, given)
    if len(paths) != bool(source.path):
        raise UsageError(
            f"prepare {source.name}: expected {'one' if source.path else 'no'} path, found "
            f"{len(paths)} ({' '.join(paths) or 'none'})"
        )
    from raymed.library.commands import prepare

    prepare(source.name, *paths, console=console, **settings.model_dump(exclude_unset=True))


def _quoted(path: AnyPath) -> str:
    """A path or URI quoted for the shell, to which a URI's options would mean something else."""
    return shlex.quote(str(path))


def _train(options: argparse.Namespace, console: Console) -> None:
    config = configuration.load(options.file, options.settings)
    from raymed.library.commands import train

    run = train(config, console=console)
    _print(
        console,
        f"best: epoch {run.best.epoch}, validation {run.score}: {run.best.path}\n"
        f"next: raymed evaluate {_quoted(run.folder)} split=test",
    )


def _tune(options: argparse.Namespace, console: Console) -> None:
    config = configuration.load(options.file, options.settings)
    from raymed.library.commands import tune

    sweep = tune(config, console=console)
    _print(
        console,
        f"leaderboard: {sweep.leaderboard}\nbest configuration: {sweep.best_config}\n"
        f"best run: {sweep.best}\nnext: raymed report {_quoted(sweep.folder)}\n"
        f"  or: raymed evaluate {_quoted(sweep.best)} split=test\n"
        f"  or: raymed train {_quoted(sweep.best_config)}",
    )


def _report(options: argparse.Namespace, console: Console) -> None:
    outs = [s.removeprefix("out=") for s in options.settings if s.startswith("out=")]
    if len(outs) < len(options.settings):
        other = next(s for s in options.settings if not s.startswith("out="))
        raise UsageError(f"{other}: cannot be set here; only out=FILE can")
    from raymed.tuning.page import write_report

    page = as_path(outs[-1]) if outs else as_path(options.run) / "report.html"
    write_report(as_path(options.run), page)
    _print(console, str(page))


def _finetune(options: argparse.Namespace, console: Console) -> None:
    own, others = _split_settings(options.settings, "top", "objective")
    folder, objective = as_path(options.run_or_sweep), own.get("objective", "likelihood")
    if objective not in ("likelihood", "cider"):
        raise UsageError(f"objective: must be likelihood or cider, not {objective!r}")
    from raymed.run_folder import RunFolder

    if RunFolder(folder).exists:
        return _finetune_run(RunFolder(folder), own, others, console)
    top = own.get("top", "3")
    if not top.isdecimal() or int(top) < 1:
        raise UsageError(f"top: must be a number of trials, 1 or more, not {top!r}")
    from raymed.tuning.finetune import fine_tune

    done = fine_tune(folder, int(top), others, console, objective)
    best = max(done, key=lambda run: run.score)
    _print(console, f"best: {best.folder}\nnext: raymed evaluate {_quoted(best.folder)} split=test")


def _finetune_run(
    run: "RunFolder", own: dict[str, str], settings: Sequence[str], console: Console
) -> None:
    if own.get("objective") != "cider":
        raise UsageError(
            f"{run.path}: is a run, which `raymed finetune` trains on for its score: add "
            "objective=cider (or give a sweep's folder, to unfreeze its best trials' encoder)"
        )
    if "top" in own:
        raise UsageError(f"top: {run.path} is a run; only a sweep has several to choose from")
    from raymed.launch.run import run_training
    from raymed.launch.second_stage import describe, second_stage

    config = second_stage(run, settings)
    _print(console, f"second stage: {describe(config)}")
    before, best = run.best_checkpoint(), run_training(config, console)
    _print(
        console,
        f"before: epoch {before.epoch}, validation {ranked_score(before.history[-1])}\n"
        f"best: epoch {best.epoch}, validation {ranked_score(best.history[-1])}: {best.path}\n"
        f"next: raymed evaluate {_quoted(best.path.parent.parent)} split=test",
    )


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    own, others = _split_settings(options.settings, "split", "out")
    from raymed.library.commands import evaluate

    split, out = own.get("split", "test"), own.get("out") or None
    evaluate(options.checkpoint, split, others, out=out, console=console)


def _score(options: argparse.Namespace, console: Console) -> None:
    own, request = _score_settings(options)
    from raymed.predictions_file import SCORES_FILE
    from raymed.scoring import score
    from raymed.verdict import verdict

    name = as_path(options.predictions).name.partition(".")[0]
    out = as_path(own.get("out", f"scores/{name}"))
    found = score(options.predictions, request, out)
    console.print(found.table())
    for note in found.notes():
        _print(console, note)
    _print(console, f"scores: {out / SCORES_FILE}")
    if len(found.rows) > 1:
        _print(console, verdict(found.rows))


def _compare(options: argparse.Namespace, console: Console) -> None:
    own, request = _score_settings(options)
    from raymed.comparing import COMPARISON_FILE, compare

    found = compare(options.a, options.b, request)
    console.print(found.table())
    for line in (*found.notes, *found.sentences()):
        _print(console, line)
    if "out" in own:
        found.write(as_path(own["out"]))
        _print(console, f"comparison: {as_path(own['out']) / COMPARISON_FILE}")


def _score_settings(options: argparse.Namespace) -> tuple[dict[str, str], "Request"]:
    """The settings of `score` and `compare`, and what they say is to be scored."""
    columns = ("id", "report", "reference")
    keys = ("references", "split", "text", "out", *columns)
    own, others = _split_settings(options.settings, *keys)
    if others:
        key = others[0].partition("=")[0]
        raise UsageError(f"{key}: no such key; {options.name} accepts {', '.join(keys)}")
    from raymed.scoring import Request

    request = Request(
        references=own.get("references"),
        split=own.get("split", "test"),
        rule=own.get("text", "paper"),
        columns={key: own[key] for key in columns if key in own},
    )
    return own, request


def _predict(options: argparse.Namespace, console: Console) -> None:
    settings = [s for s in options.images if _is_setting(s)]
    images = [s for s in options.images if s not in settings]
    own, others = _split_settings(settings, "out")
    if not images:
        raise UsageError("predict: IMAGE is missing; give image files or folders")
    from raymed.prediction import PREDICTIONS_FILE, predict, print_prediction

    checkpoint = _open_checkpoint(options.checkpoint)
    config = configuration.apply_settings(checkpoint.config, others, ("out", "generation."))
    out = as_path(own.get("out", "predictions"))
    for prediction in predict(checkpoint, config, images, out, partial(_print, console)):
        print_prediction(prediction, console)
    _print(console, f"predictions: {out / PREDICTIONS_FILE}")


def _export(options: argparse.Namespace, console: Console) -> None:
    own, others = _split_settings(options.settings, "out")
    if "out" not in own:
        raise UsageError("export: out=FOLDER is missing; give the folder to write the programs to")
    from raymed.export import export

    checkpoint = _open_checkpoint(options.checkpoint)
    config = configuration.apply_settings(checkpoint.config, others, ("out", "generation."))
    export(checkpoint, config, as_path(own["out"]))
    _print(console, f"exported: {own['out']}\nhow to read it: docs/export.md")


def _split_settings(settings: Sequence[str], *keys: str) -> tuple[dict[str, str], list[str]]:
    """Split ``key=value`` settings into the command's own (the last of each key) and the others."""
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
        raise UsageError("table: FILE is missing; give one such as tune_configs/table_phantom.yaml")
    configs = [configuration.load(file, settings) for file in files]
    folders = [as_path(config.run.folder) / config.run.name for config in configs]
    for folder in folders:
        sharing = [file for file, own in zip(files, folders, strict=True) if own == folder]
        if len(sharing) > 1:
            raise UsageError(
                f"run.name: {' and '.join(sharing)} share the folder {folder}; give each a name of "
                "its own"
            )
    from raymed.tables.make import make_table

    made = [make_table(options.table, config, console) for config in configs]
    _print(console, "\n".join(f"table: {file} (its runs are beside it)" for file in made))


def _figure(options: argparse.Namespace, console: Console) -> None:
    runs = [s for s in options.runs if not _is_setting(s)]
    settings = dict(s.split("=", 1) for s in options.runs if s not in runs)
    known = {"split": "test", "images": "", "data.path": None, "out": "figures"}
    for key in settings:
        if key not in known:
            raise UsageError(f"{key}: no such key; figure accepts {', '.join(known)}")
    if not runs:
        raise UsageError("figure: RUN is missing; give the folder of a run")
    values = {**known, **settings}
    from raymed.figures import make_figure

    files = make_figure(
        options.figure,
        runs,
        values["data.path"],
        str(values["split"]),
        str(values["images"]),
        as_path(str(values["out"])),
    )
    _print(console, "\n".join(map(str, files)))


def _doctor(options: argparse.Namespace, console: Console) -> int:
    config = _load_optional_file(options)
    from raymed.doctor import print_checks, run_checks

    return print_checks(run_checks(config), partial(_print, console))


def _demo(options: argparse.Namespace, console: Console) -> None:
    config = _load_optional_file(options, example("tune_configs/demo.yaml"))
    from raymed.demo import run_demo

    run_demo(config, console)


def _init(options: argparse.Namespace, console: Console) -> None:
    written = copy_examples(Path(options.folder))
    _print(console, f"{options.folder}: {len(written)} files\n{what_next(Path(options.folder))}")


def _is_out(text: str) -> bool:
    return text.startswith("out=")


def _is_setting(text: str) -> bool:
    """Whether it is ``key=value``, not a path or URI that contains a ``=``."""
    # Unlike pathlib, os.path.exists does not raise for a setting too long to be a file name.
    key, equals, _ = text.partition("=")
    return bool(equals) and not is_uri(key) and not os.path.exists(text)


def _print(console: Console, lines: str) -> None:
    """Print verbatim: paths are copied and pasted, so no wrapping and no markup."""
    console.print(lines, highlight=False, markup=False, soft_wrap=True)


def _open_checkpoint(path: str) -> "Checkpoint":
    from raymed.training.checkpoint import Checkpoint

    return Checkpoint.open(path)


COMMANDS = {
    "config": _config,
    "prepare": _prepare,
    "train": _train,
    "tune": _tune,
    "report": _report,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "score": _score,
    "compare": _compare,
    "predict": _predict,
    "export": _export,
    "table": _table,
    "figure": _figure,
    "doctor": _doctor,
    "demo": _demo,
    "init": _init,
}
