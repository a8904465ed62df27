"""The command line's grammar: commands, their arguments and their help texts."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raymed import __version__
from raymed.completion import SHELLS, Words, completion_script
from raymed.config import dotted_keys
from raymed.data.sources import SOURCES, all_sources
from raymed.metrics.table import objective_metrics
from raymed.model.systems import SYSTEMS
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.prepare_help import prepare_help

SETTINGS = "settings as key=value, e.g. training.epochs=5; before or after the file"
CHECKPOINT = "folder of a run or of one of its checkpoints"


class _Parser(argparse.ArgumentParser):
    """A parser whose help may end with a text that takes time to make.

    Attributes:
        write_epilog: Returns that text.
        keys: Returns the keys of the command's settings.
    """

    write_epilog: Callable[[], str] | None = None
    keys: Callable[[], Iterable[str]] = tuple

    def format_help(self) -> str:
        if self.write_epilog is not None:
            self.epilog = self.write_epilog()
        return super().format_help()


def parse(
    commands: Mapping[str, Callable[..., Any]], arguments: Sequence[str]
) -> argparse.Namespace:
    """Parse a command line; the command is in ``command``, and its name in ``name``.

    Args:
        commands: What to call for each command in `COMMANDS`.
        arguments: Files and folders first, then settings.

    Raises:
        SystemExit: After ``--help`` and the like, and on a mistake.
    """
    parser, subparsers = _build(commands)
    if answer := _answer_option(arguments, subparsers):
        parser.exit(2, f"raymed: {answer}\n")
    return parser.parse_args(arguments)


OPTIONS = ("-h", "--help", "--version", "--print-completion")


def _answer_option(arguments: Sequence[str], subparsers: Mapping[str, _Parser]) -> str:
    """Answer options that raymed does not have, such as ``--epochs 3``, with the setting meant.

    Returns:
        The message; empty if there is no such option.
    """
    for number, text in enumerate(arguments):
        option, equals, value = text.partition("=")
        if option in OPTIONS or not re.fullmatch("--?[A-Za-z][A-Za-z0-9._-]*", option):
            continue
        following = [*arguments[number + 1 : number + 2]]
        if not equals and following and not re.search("^-|=", following[0]):
            value = following[0]
        command = next((one for one in arguments if one in subparsers), "config")
        meant = [f"{key}={value or '...'}" for key in _meant(option, [*subparsers[command].keys()])]
        return f"{option}: is not an option; settings are written " + (
            " or ".join(meant) or f"key=value: `raymed {command} --help` says which there are"
        )
    return ""


def _meant(option: str, keys: Sequence[str]) -> list[str]:
    """The keys that an option such as ``--batch-size`` was probably meant for."""
    name = option.lstrip("-").replace("-", "_")
    if name in keys:
        return [name]
    last = {key: key.rpartition(".")[2] for key in keys}
    same = [key for key in keys if last[key] == name.rpartition(".")[2]]
    if same:
        return same
    close = difflib.get_close_matches(name, [*keys, *last.values()], n=1, cutoff=0.7)
    return [key for key in keys if close and close[0] in (key, last[key])]


class _PrintCompletion(argparse.Action):
    """Print the script for a shell and exit."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        words = {
            name: Words(
                fixed=[word for one in subparser._actions for word in one.choices or ()],
                keys=[*subparser.keys()],
                yaml=any(str(one.metavar)[:4] == "FILE" for one in subparser._actions),
            )
            for name, subparser in _build(dict.fromkeys(COMMANDS, print))[1].items()
        }
        print(completion_script(shell, words), end="")
        parser.exit()


def _build(commands: Mapping[str, Callable[..., Any]]) -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and those of the commands by name."""
    parser = _Parser(
        prog="raymed",
        description="Train models that look at a medical image and write its report, on Ray.",
        epilog=NOT_FOR_CLINICAL_USE,
    )
    parser.add_argument("--version", action="version", version=f"raymed {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help='a shell\'s completion script: eval "$(raymed --print-completion bash)"',
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    by_name = {}
    for name, (text, add_arguments) in COMMANDS.items():
        by_name[name] = subparser = subparsers.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=commands[name], name=name)
        add_arguments(subparser)
    return parser, by_name


def _add_settings(parser: _Parser, takes: str = SETTINGS) -> None:
    """Any number of settings at the end of a command; ``takes`` says which."""
    parser.add_argument("settings", nargs="*", metavar="key=value", help=takes)
    parser.keys = dotted_keys


def _generation_keys(*others: str) -> Callable[[], Iterable[str]]:
    """These keys and those of the section ``generation``."""
    return lambda: [*others, *(key for key in dotted_keys() if key.startswith("generation."))]


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
    parser.keys = _prepare_keys


def _prepare_keys() -> Iterable[str]:
    return dict.fromkeys(key for one in all_sources().values() for key in one.settings.model_fields)


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
    parser.keys = lambda: ("out",)


def _finetune(parser: _Parser) -> None:
    parser.add_argument("run_or_sweep", metavar="RUN|SWEEP", help="the folder of a run or sweep")
    _add_settings(
        parser,
        "objective=cider: self-critical training, which a run needs (default: likelihood, "
        f"which unfreezes the encoder); top=N trials of a sweep (default: 3); and {SETTINGS}",
    )
    parser.keys = lambda: ("objective", "top", *dotted_keys())


def _evaluate(parser: _Parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    _add_settings(
        parser,
        "split=train, val or test (default: test), out=FOLDER (default: CHECKPOINT/SPLIT), "
        "data.path and generation keys",
    )
    parser.keys = _generation_keys("split", "out", "data.path")


SCORE_KEYS = ("references", "split", "text", "out", "id", "report", "reference")
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
    parser.keys = lambda: SCORE_KEYS


def _compare(parser: _Parser) -> None:
    parser.add_argument("a", metavar="A", help=REPORTS)
    parser.add_argument("b", metavar="B", help="the same of the other system")
    _add_settings(
        parser,
        f"{REFERENCES}; out=FOLDER for comparison.json (default: it is only printed)",
    )
    parser.keys = lambda: SCORE_KEYS


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
    parser.keys = _generation_keys("out")


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
    parser.keys = dotted_keys


def _figure(parser: _Parser) -> None:
    parser.add_argument("figure", choices=("3", "4"), help="3: reports compared; 4: attention")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|key=value",
        help="run folders; split=SPLIT (default: test), images=ID,ID (default: the first with an "
        "abnormality), data.path, and out=FOLDER (default: figures)",
    )
    parser.keys = lambda: ("split", "images", "data.path", "out")


def _doctor(parser: _Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a YAML file; default: none")
    _add_settings(parser, "launch.address, run.folder")


def _demo(parser: _Parser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a sweep's YAML; default: tune_configs/demo.yaml"
    )
    _add_settings(parser)


def _init(parser: _Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to copy them into; . is this one")


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
    "init": ("copy the example files, tune_configs/ and cluster/, into a folder", _init),
}
"""One line about each command, and what adds its arguments to its parser."""
