"""Scoring anyone's reports: matched with references, then scored as an evaluation's are."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from raymed.data.dataset import PreparedDataset
from raymed.data.r2gen_text import RULES, R2GenRules
from raymed.data.sources.r2gen import rules_of
from raymed.data.text import with_full_stops
from raymed.errors import UsageError
from raymed.evaluation import baseline_columns, baseline_rows, baselines
from raymed.matching import Matched, match
from raymed.predictions_file import (
    PER_REPORT_FILE,
    PREDICTIONS_FILE,
    SCORES_FILE,
    PredictionsFile,
    score_file,
    write_predictions,
)
from raymed.provenance import Record, refuse_to_overwrite
from raymed.report_sets import Reading, ReportSet, chained, of_split, read_reports
from raymed.report_text import NONE, PAPER, TEXT_RULES, TextRule, r2gen
from raymed.scores import ExternalScores
from raymed.storage import AnyPath, as_path, local_copy, reason, user_output

RADEVAL_FILE = "radeval.jsonl"
_RULES: dict[str, TextRule] = {"paper": PAPER, "none": NONE}
NO_SENTENCES = (
    "The normality share and measures of findings are missing: the predictions do not show where "
    "sentences end. Give each report with full stops, or as a list of sentences."
)


@dataclass(frozen=True)
class Request:
    """What is to be scored, as the user gave it.

    Attributes:
        references: A prepared dataset, or a file of reports; None if the predictions have them.
        split: The split of a dataset or of an annotation file.
        rule: The name of the rule by which texts are preprocessed; see `raymed.report_text`.
        columns: The names of tables' columns, by ``id``, ``report`` and ``reference``.

    Raises:
        UsageError: There is no such rule.
    """

    references: str | None
    split: str = "test"
    rule: str = "paper"
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in TEXT_RULES:
            raise UsageError(f"text: must be {' or '.join(TEXT_RULES)}, not {self.rule!r}")
        if self.rule == "r2gen" and self.references is None:
            raise UsageError(
                "text=r2gen: give references=FILE, an annotation file, or references=DATASET; what "
                "an evaluation wrote has its references already, and is scored without text="
            )

    def read_predictions(self, where: str, folder: Path) -> ReportSet:
        """The predictions of a file, with a folder for temporary files."""
        rule = r2gen(self._r2gen_rules()) if self.rule == "r2gen" else _RULES[self.rule]
        return read_reports(where, Reading("report", folder, rule, None, self.columns))

    def read_references(self, where: str, folder: Path) -> ReportSet:
        """The references of a file or of a prepared dataset's split."""
        if is_dataset(where):
            return of_split(self._dataset(where), self.split)
        rule = _RULES.get(self.rule)
        if rule is None:
            rules = self._r2gen_rules()
            training = Reading("reference", folder, r2gen(rules), "train", self.columns)
            reports = read_reports(where, training).sentences
            words = Counter(word for report in reports for word in chained(report).split())
            rule = r2gen(rules, rules.known(words))
        return read_reports(where, Reading("reference", folder, rule, self.split, self.columns))

    def _dataset(self, where: str) -> PreparedDataset:
        """The prepared dataset with the references, whose text must be that of the rule."""
        dataset = PreparedDataset.open(where)
        text = dataset.info.text
        if self.rule == "r2gen" and text != "r2gen":
            raise UsageError(
                f"{where}: was prepared with text={text}: prepare it with text=r2gen, or score "
                f"with text={text}"
            )
        if self.rule == "paper" and text == "r2gen":
            raise UsageError(
                f"{where}: was prepared with text=r2gen, whose words include full stops and <unk>, "
                "which text=paper would take out of the predictions: set text=r2gen"
            )
        return dataset

    def _r2gen_rules(self) -> R2GenRules:
        """R2Gen's rules for the references."""
        assert self.references is not None
        if is_dataset(self.references):
            made = self._dataset(self.references).info.r2gen
            assert made is not None
            return RULES[made.dataset]
        with local_copy(as_path(self.references)) as local:
            return rules_of(local)


def predictions_path(given: str) -> str:
    """The file of predictions: the one given, or that of an evaluation's folder."""
    file = as_path(given) / PREDICTIONS_FILE
    return str(file) if file.is_file() else given


def is_dataset(where: str) -> bool:
    """Whether references are given by a folder, which must be a prepared dataset."""
    path = as_path(where)
    return path.is_dir() and not path.name.endswith(".parquet")


def score(predictions: str, request: Request, out: AnyPath) -> ExternalScores:
    """Score reports, beside the two baselines that need no model if the references allow it.

    Args:
        predictions: A file of reports, or an evaluation's folder.
        request: What they are scored against.
        out: Folder for ``predictions.parquet`` (unless that was given), ``scores.json``,
            ``per_report.parquet`` and ``radeval.jsonl``.

    Raises:
        UsageError: A file cannot be read or written, nothing matches, or ``out`` contains results
            of something else.
    """
    where = predictions_path(predictions)
    if request.references is None:
        _require_references(as_path(where))
    record = _made_from(where, request)
    refuse_to_overwrite(out, (PREDICTIONS_FILE, SCORES_FILE, PER_REPORT_FILE), record)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    left_out: tuple[str, ...] = ()
    file, title = as_path(where), as_path(where).name
    if request.references is not None:
        title += f" against {as_path(request.references).name}"
        title += f", {request.split} split" if is_dataset(request.references) else ""
        file = out / PREDICTIONS_FILE
        with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
            own = request.read_predictions(where, Path(folder))
            truth = request.read_references(request.references, Path(folder))
            matched = match(own, truth, (where, request.references))
            _write_matched(file, matched, request, record)
        left_out = matched.left_out
        left_out += () if matched.sentences_are_known else (NO_SENTENCES,)
    scores = score_file(file, "predictions", out / PER_REPORT_FILE, record)
    with local_copy(file) as local:
        opened = PredictionsFile(local)
        if "report" in opened.columns:
            _write_radeval(out / RADEVAL_FILE, opened)
        found = ExternalScores(
            **vars(scores), split=title, images=len(opened), made_from=record, left_out=left_out
        )
    found.write(out / SCORES_FILE)
    return found


def _require_references(file: AnyPath) -> None:
    try:
        with local_copy(file) as local:
            recognised = PredictionsFile.recognises(local)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({reason(error)})") from error
    if not recognised:
        raise UsageError(
            f"{file}: has no references, as a {PREDICTIONS_FILE} of `raymed evaluate` would; give "
            "references=DATASET or references=FILE"
        )


def _write_matched(file: AnyPath, matched: Matched, request: Request, record: Record) -> None:
    """Write matched predictions, beside the baselines' reports if there is a training split."""
    columns = matched.columns()
    names = list(columns)
    written: Iterator[dict[str, Any]] = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    if request.references is not None and is_dataset(request.references):
        dataset = PreparedDataset.open(request.references)
        if dataset.info.counts.get("train"):
            chosen = np.zeros(len(matched.references), bool)
            chosen[matched.rows] = True
            without_model = baselines(dataset, request.split, None)
            names += baseline_columns(without_model)
            others = compress(baseline_rows(without_model), chosen.tolist())
            written = (own | other for own, other in zip(written, others, strict=True))
    write_predictions(file, names, written, record)


def _write_radeval(path: AnyPath, file: PredictionsFile) -> None:
    """Write reports and references as RadEval reads them: JSON Lines with ``ref`` and ``hyp``."""
    sides = (("reference", "reference_sentences"), ("report", "sentences"))
    references, reports = (
        file.column(sentences).map(with_full_stops)
        if sentences in file.columns
        else file.column(text)
        for text, sentences in sides
    )
    rows = zip(file.column("image_id"), references, reports, strict=True)
    with user_output(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for name, reference, report in rows:
            line = {"id": name, "ref": reference, "hyp": report}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _made_from(where: str, request: Request) -> Record:
    """The record of what the scores were made from; see `raymed.provenance`."""
    references: Record | None = None
    if request.references is not None:
        references = {"path": str(as_path(request.references).absolute()), "split": request.split}
        if is_dataset(request.references):
            content = PreparedDataset.open(request.references).info.content_hash
            references["content_hash"] = content
        else:
            references["sha256"] = _file_hash(request.references)
    return {
        "raymed": version("raymed"),
        "predictions": {"path": str(as_path(where).absolute()), "sha256": _file_hash(where)},
        "references": references,
        "settings": {"text": request.rule, **request.columns},
    }


def _file_hash(where: str) -> str:
    path = as_path(where)
    try:
        with local_copy(path) as local, local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({reason(error)})") from error
