"""``MODEL_CARD.md``: what a run's model is, was trained on, scores and cannot do.

A Markdown file that begins with metadata in YAML, as the model cards of the Hugging Face Hub do. It
describes the run's best checkpoint. Training writes it, and `raymed evaluate` writes it again with
the scores.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from raymed.config import Config, keys_that_decide
from raymed.data.dataset import PreparedDataset
from raymed.data.schema import DatasetInfo
from raymed.errors import UsageError
from raymed.metrics.resampling import LEVEL
from raymed.metrics.table import METRICS, Metric, scored_metrics, summary
from raymed.model.systems import system_class
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.predictions_file import SCORES_FILE
from raymed.provenance import made_from
from raymed.run_folder import RESULT, SCORED, RunFolder
from raymed.storage import AnyPath, is_same_folder, user_output
from raymed.training.checkpoint import Checkpoint
from raymed.training.start import encoder_run, starting_checkpoint
from raymed.verdict import verdict

CARD_FILE = "MODEL_CARD.md"
TEMPLATE = "model_card.md"
SPLITS = "test", "val", "train"
ENGLISH = {"iu-xray", "mimic-cxr", "peir-gross", "r2gen", "phantom"}
"""Sources of reports in English; the language of other reports is not known."""
METADATA: dict[str, Any] = {
    "library_name": "raymed",
    "pipeline_tag": "image-to-text",
    "tags": ["medical", "radiology", "report-generation", "not-for-clinical-use"],
}


def write_model_card(
    run: AnyPath, warn: Callable[[str], None], scores: Sequence[Mapping[str, Any]] = ()
) -> AnyPath | None:
    """Write the card of a run's best checkpoint into the run's folder.

    A card that cannot be written must not fail the run or the evaluation that is done.

    Args:
        run: The run's folder.
        warn: Receives the reason if the card cannot be written.
        scores: As for `model_card`.

    Returns:
        The card; None if it could not be written.
    """
    try:
        text = model_card(RunFolder(run).best_checkpoint(), scores)
        with user_output(run / CARD_FILE) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except UsageError as error:
        warn(f"the model card was not written: {error}")
        return None
    return run / CARD_FILE


def refresh_model_card(
    checkpoint: Checkpoint, scores: Mapping[str, Any], warn: Callable[[str], None]
) -> AnyPath | None:
    """Write the card again after an evaluation, if a run's best checkpoint was evaluated.

    Args:
        checkpoint: What was evaluated.
        scores: The content of its ``scores.json``.
        warn: As for `write_model_card`.

    Returns:
        The card; None if it was not written, as for a checkpoint that is not a run's best one.
    """
    run = RunFolder(_run_of(checkpoint))
    if not run.exists or not is_same_folder(run.best_checkpoint().path, checkpoint.path):
        return None
    return write_model_card(run.path, warn, [scores])


def model_card(checkpoint: Checkpoint, scores: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text of a checkpoint's card.

    Args:
        checkpoint: The checkpoint.
        scores: The content of ``scores.json`` of evaluations of this checkpoint that may not lie in
            the run's folder, where all others are found.
    """
    config, info = checkpoint.config, _dataset_info(checkpoint)
    found = [_Scores(each).values() for each in _matching(checkpoint, scores)]
    english = info is not None and info.source in ENGLISH
    metadata = {**({"language": "en"} if english else {}), **METADATA}
    if config.training.start_from is not None:
        metadata["tags"] = [*metadata["tags"], "fine-tuned"]
    # Loaded only here: Ray's workers import this module too.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("raymed.reports"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(TEMPLATE).render(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        not_for_clinical_use=NOT_FOR_CLINICAL_USE,
        name=config.run.name,
        raymed=version("raymed"),
        checkpoint=checkpoint,
        config=config,
        writes=system_class(config.model.system).writes_reports,
        precision=str(checkpoint.precision).removeprefix("torch."),
        validation=summary(checkpoint.history[-1]) if checkpoint.history else "",
        parents=_parents(config),
        settings=_changed_settings(config),
        info=info,
        english=english,
        level=LEVEL,
        scores=found,
    )


def _run_of(checkpoint: Checkpoint) -> AnyPath:
    """The folder of the run that wrote a checkpoint, or would have if it was copied elsewhere."""
    return checkpoint.path.absolute().parent.parent


def _dataset_info(checkpoint: Checkpoint) -> DatasetInfo | None:
    """The dataset that a checkpoint was trained on; None where it is not at hand."""
    try:
        info = PreparedDataset.open(checkpoint.config.data.path).info
    except UsageError:
        return None
    return info if info.content_hash == checkpoint.content_hash else None


def _parents(config: Config) -> list[tuple[str, str, str]]:
    """What a run started from: the key, its value, and what is known of that run."""
    found = []
    for key, path, find in (
        ("training.start_from", config.training.start_from, lambda: starting_checkpoint(config)),
        ("model.encoder_weights", config.model.encoder_weights, lambda: encoder_run(config.model)),
    ):
        if path in (None, "imagenet", "none"):
            continue
        try:
            parent = find()
        except UsageError:
            found.append((key, str(path), "not at hand when this card was written"))
            continue
        if parent is not None:
            known = f"epoch {parent.epoch}, trained on the dataset {parent.content_hash[:12]}"
            found.append((key, str(path), known))
    return found


def _changed_settings(config: Config) -> list[tuple[str, Any]]:
    """The settings that decide a run's result and are not the defaults."""
    ours, defaults = (each.model_dump(mode="json", by_alias=True) for each in (config, Config()))
    keys = (key.partition(".") for key in keys_that_decide(*RESULT))
    return [
        (f"{section}.{name}", json.dumps(ours[section][name], ensure_ascii=False))
        for section, _, name in keys
        if ours[section][name] != defaults[section][name]
    ]


def _matching(
    checkpoint: Checkpoint, further: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The evaluations of a checkpoint, a split and settings each once, the test split first."""
    run = _run_of(checkpoint)
    folders = [
        run / SCORED,
        *(where / split for where in (run, checkpoint.path) for split in SPLITS),
    ]
    scores = [*further, *_stored(folder / SCORES_FILE for folder in folders)]
    if not scores:
        return []
    # The further ones are of this checkpoint: its weights need not be read for their hash.
    own = (
        further[0]["made_from"] if further else made_from(checkpoint, checkpoint.config, None, None)
    )
    weights = own["checkpoint"]["weights"]
    found: dict[str, Mapping[str, Any]] = {}
    for each in scores:
        record = each["made_from"]
        if record["checkpoint"]["weights"] == weights:
            same = [each["split"], record["data"]["content_hash"], record["settings"]]
            found.setdefault(json.dumps(same, sort_keys=True), each)
    return sorted(found.values(), key=lambda each: SPLITS.index(each["split"]))


def _stored(files: Iterable[AnyPath]) -> list[Mapping[str, Any]]:
    """The content of those files that exist and that an evaluation wrote."""
    found = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content["made_from"]["checkpoint"]["weights"], content["made_from"]["data"]["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append(content)
    return found


class _Scores:
    """An evaluation as its section of the card shows it.

    Args:
        content: The content of ``scores.json``.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def values(self) -> dict[str, Any]:
        """The template's variables."""
        rows = self.content["rows"]
        known = [
            row for row in scored_metrics() if any(r[row.key] is not None for r in rows.values())
        ]
        record = self.content["made_from"]
        return {
            "split": self.content["split"],
            "images": self.content["images"],
            "studies": self.content["studies"],
            "names": list(rows),
            "rows": [(each.label, [self._cell(each, name) for name in rows]) for each in known],
            "truth_distinct": self.content["truth_distinct"],
            "writes": any(row["cider"] is not None for row in rows.values()),
            "verdict": verdict(rows),
            "data": record["data"],
            "settings": ", ".join(f"{k}={json.dumps(v)}" for k, v in record["settings"].items()),
            "trained_on": self.content["trained_on"],
            "missing": [
                f"{METRICS[key].label} is missing: {self.content[f'{key}_missing']}"
                for key in METRICS
                if self.content.get(f"{key}_missing")
            ],
        }

    def _cell(self, metric: Metric, name: str) -> str:
        value = metric.format(self.content["rows"][name][metric.key])
        bounds = self.content["intervals"][name].get(metric.key)
        return value if bounds is None else f"{value} ({' to '.join(map(metric.format, bounds))})"
