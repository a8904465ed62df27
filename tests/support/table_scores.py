"""Folders of runs with made-up scores, without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from raymed.config import Config
from raymed.localisation import ATTENTION_FILE
from raymed.predictions_file import BASELINES, SCORES_FILE
from raymed.run_folder import SCORED
from raymed.tables.runs import Run

RECALLS = ("recall_5", "recall_10", "recall_20")
CAPTIONS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "normality")
ATTENTION = ("right", "region", "region_fixed", "region_chance", "tag", "tag_chance")


class Fabricated:
    """Writes such folders; every score is a random number and kept for comparison."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self.baselines = {
            name: self.scores(distinct)
            for name, distinct in zip(BASELINES, (1, 9, 12), strict=True)
        }
        self.truth = {"truth_normality": float(self.rng.random()), "truth_distinct": 17}

    def scores(self, distinct: int) -> dict[str, Any]:
        names = (*RECALLS, *CAPTIONS)
        return dict(zip(names, self.rng.random(len(names)).tolist(), strict=True)) | {
            "distinct": distinct
        }

    def run(self, system: str, seed: int, attention: bool = False, **changes: Any) -> Run:
        """A finished run; ``changes`` replace scores of it."""
        own = self.scores(int(self.rng.integers(1, 20)))
        if system == "vgg19_tags":
            own |= dict.fromkeys((*CAPTIONS, "distinct"))
        run = Run(system, seed, Config(), self.folder / f"{system}-seed-{seed}")
        (run.folder / SCORED).mkdir(parents=True)
        content = {"rows": {system: own | changes, **self.baselines}, **self.truth}
        (run.folder / SCORED / SCORES_FILE).write_text(json.dumps(content))
        if attention:
            values: dict[str, Any] = dict(zip(ATTENTION, self.rng.random(6).tolist(), strict=True))
            values |= {name: changes[name] for name in ATTENTION if name in changes}
            (run.folder / SCORED / ATTENTION_FILE).write_text(
                json.dumps({"sentences": 5, **values})
            )
        return run


def values_of(runs: list[Run], system: str, measure: str) -> list[float]:
    """A measure of all runs of a system, read from their files as they are."""
    found = []
    for run in runs:
        if run.system == system:
            scores = json.loads((run.folder / "scored" / "scores.json").read_text())["rows"][system]
            attention = run.folder / "scored" / "attention.json"
            scores |= json.loads(attention.read_text()) if attention.is_file() else {}
            normality = scores["normality"]
            scores["abnormality"] = None if normality is None else 1 - normality
            found.append(scores[measure])
    return found
