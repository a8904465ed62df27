"""The command line's grammar: commands, their arguments and their help texts."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from raymed import __version__
from raymed.data.sources import SOURCES
from raymed.metrics.table import objective_metrics
from raymed.model.systems import SYSTEMS
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.prepare_help import prepare_help

SETTINGS = "settings as key=value, e.g. training.epochs=5; before or after the file"
CHECKPOINT = "folder of a run or of one of its checkpoints"


class _Parser(argparse.ArgumentParser):
    """A parser whose help may end with a text that takes time to make."""

    write_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.write_epilog is not None:
            self.epilog = self.write_epilog()
        return super().format_help()


def build_parser(commands: Mapping[str, Callable[..., Any]]) -> argparse.ArgumentParser:
    """The parser of ``raymed``; a parsed command is in ``command``, its name in ``name``.

    Args:
        commands: What to call for each command in `COMMANDS`.
    """
    parser = _Parser(
        prog="raymed",
        description="Train models that look at a medical image and write its report, on Ray.",
        epilog=NOT_FOR_CLINICAL_USE,
    )
    parser.add_argument("--version", action="version", version=f"raymed {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, add_arguments) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=commands[name], name=name)
        add_arguments(subparser)
    return parser


def _add_settings(parser: _Parser, takes: str = SETTINGS) -> None:
    """Any number of settings at the end of a command; ``takes`` says which."""
    parser.add_argument("settings", nargs="*", metavar="key=value", help=takes)


def _config(parser: _Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a YAML file; default: none")
    _add_settings(parser)


def _prepare(parser: _Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.write_epilog = prepare_help
    parser.add_argument("source", choices=tuple(SOURCES), metavar="SOURCE", help=", ".join(SOURCES))
    parser.add_argument(
        "settings", nargs="*", metavar="PATH|key=value", help="the source's path, and settings"
    )


def _train(parser: _Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a YAML file, such as those in tune_configs/")
    _add_settings(parser)
    parser.epilog = f"model.system is one of {', '.join(SYSTEMS)}"


def _tune(parser: _Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a YAML file with a tune section")
    _add_settings(parser)
    objectives = ", ".join(metric.key for metric in objective_metrics())
    parser.epilog = f"tune.objectives may be any of {objectives}"


def _report(parser: _Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a sweep's folder, finished or not")
    parser.add_argument(
        "settings", nargs="*", metavar="out=FILE", help="page to write; default: RUN/report.html"
    )


def _finetune(parser: _Parser) -> None:
    parser.add_argument("run_or_sweep", metavar="RUN|SWEEP", help="the folder of a run or sweep")
    _add_settings(
        parser,
        "objective=cider: self-critical training, which a run needs (default: likelihood, "
        f"which unfreezes the encoder); top=N trials of a sweep (default: 3); and {SETTINGS}",
    )


def _evaluate(parser: _Parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    _add_settings(
        parser,
        "split=train, val or test (default: test), out=FOLDER (default: CHECKPOINT/SPLIT), "
        "data.path and generation keys",
    )


REFERENCES = (
    "references=DATASET or FILE (default: those in the predictions' file), split=SPLIT of a "
    "dataset or annotation file (default: test), text=paper, r2gen or none (how texts are "
    "preprocessed), and id=, report= and reference=COLUMN of tables"
)
REPORTS = (
    "reports by id: JSON, JSONL, CSV, Parquet, a text file with a report to a line, or the folder "
    "of an evaluation"
)


def _score(parser: _Parser) -> None:
    parser.add_argument("predictions", metavar="PREDICTIONS", help=REPORTS)
    _add_settings(
        parser,
        f"{REFERENCES}; out=FOLDER (default: scores/NAME)",
    )


def _compare(parser: _Parser) -> None:
    parser.add_argument("a", metavar="A", help=REPORTS)
    parser.add_argument("b", metavar="B", help="the same of the other system")
    _add_settings(
        parser,
        f"{REFERENCES}; out=FOLDER for comparison.json (default: it is only printed)",
    )


def _predict(parser: _Parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files (A,B: two images of one study, if the run reads several), and folders "
        "to search recursively for images; out=FOLDER for predictions.jsonl and the figures "
        "(default: predictions); generation keys as key=value",
    )


def _export(parser: _Parser) -> None:
    parser.add_argument("checkpoint", metavar="RUN", help=CHECKPOINT)
    _add_settings(parser, "out=FOLDER (required), and generation keys")


def _table(parser: _Parser) -> None:
    parser.add_argument("table", choices=("1", "2", "3", "attention"), help="which table")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE|key=value",
        help="YAML files with a table section, one per dataset; and settings",
    )


def _figure(parser: _Parser) -> None:
    parser.add_argument("figure", choices=("3", "4"), help="3: reports compared; 4: attention")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|key=value",
        help="run folders; split=SPLIT (default: test), images=ID,ID (default: the first with an "
        "abnormality), data.path, and out=FOLDER (default: figures)",
    )


def _doctor(parser: _Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a YAML file; default: none")
    _add_settings(parser, "launch.address, run.folder")


def _demo(parser: _Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a sweep's YAML: tune_configs/demo.yaml")
    _add_settings(parser)


COMMANDS: dict[str, tuple[str, Callable[[_Parser], None]]] = {
    "config": ("print the complete configuration with every key explained", _config),
    "prepare": ("build a prepared dataset from images and reports", _prepare),
    "train": ("train a run, or resume it", _train),
    "tune": ("run or resume a sweep over the keys in tune.space; rank its trials by CIDEr", _tune),
    "report": ("write a sweep's page: plots, leaderboard and sample reports", _report),
    "finetune": (
        "continue training: a run for its CIDEr, or a sweep's best trials unfrozen",
        _finetune,
    ),
    "evaluate": ("score a checkpoint on a split, beside the baselines", _evaluate),
    "score": ("score the reports of any system against references", _score),
    "compare": ("test whether two systems' reports differ in their scores", _compare),
    "predict": ("write reports for image files, with an attention figure for each", _predict),
    "export": ("write a run as torch.export programs, which run without raymed", _export),
    "table": ("train the runs that one of the paper's tables needs, and print the table", _table),
    "figure": ("draw figure 3 (several runs) or figure 4 (one run) as PNG and HTML", _figure),
    "doctor": ("check this machine's software, devices, Ray and disk space", _doctor),
    "demo": ("run the whole pipeline on phantom studies, in a few minutes", _demo),
}
"""One line about each command, and what adds its arguments to its parser."""
