"""What bounds a run's scores: what retrieval of training reports scores with the run's features.

Prints, for a split, the scores of: the nearest image by pixels and by the features of the run's
encoder; of the K nearest the report that is most like the others (consensus; Devlin et al. 2015,
"Exploring Nearest Neighbor Approaches for Image Captioning"); and, of what knows the truth, the
nearest image among those with all tags of the image, and the training report of highest CIDEr.

    python -m tests.benchmarks.retrieval RUN [split]
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from raymed.data.dataset import PreparedDataset
from raymed.evaluation import baselines
from raymed.metrics.cider import CiderReward
from raymed.metrics.scoring import Predictions, score_split
from raymed.metrics.table import METRICS, scored_metrics
from raymed.predictions_file import NEAREST
from raymed.run_folder import RunFolder
from raymed.storage import as_path
from raymed.training.pooled_features import pooled_features
from raymed.training.worker import local_device

SHOWN = "bleu_1", "bleu_4", "cider", "distinct"
CONSENSUS = 5, 25, 100


class Retrieval:
    """Ways to choose a training report for each image of a split."""

    def __init__(self, run: RunFolder, split_name: str) -> None:
        checkpoint = run.best_checkpoint()
        config, model = checkpoint.config, checkpoint.build_model(local_device())
        dataset = PreparedDataset.open(config.data.path)
        train, split = dataset.split("train"), dataset.split(split_name)
        self.texts, self.truth = list(train.references), list(split.references)
        self.tags = [frozenset(tags) for tags in train.tags]
        self.true_tags = [frozenset(tags) for tags in split.tags]
        pooled = [pooled_features(model, config, dataset, n) for n in ("train", split_name)]
        of_train, of_split = (each.descriptors(np.arange(len(each))) for each in pooled)
        self.order = np.argsort(-of_split @ of_train.T, axis=1, kind="stable")
        self.reward = CiderReward(self.texts)
        self.by_pixels = list(baselines(dataset, split_name, None)[NEAREST].texts)

    def consensus(self, count: int) -> list[str]:
        """Of the ``count`` nearest the report of the highest mean CIDEr against the others."""
        chosen = []
        for order in self.order:
            near = [self.texts[row] for row in order[:count]]
            pairs = [(one, other) for one in near for other in near]
            # A report that several of the nearest have is not compared with itself.
            same = np.array([one == other for one, other in pairs])
            scores = np.where(same, 0, self.reward(*zip(*pairs, strict=True)))
            chosen.append(near[int(scores.reshape(len(near), -1).mean(axis=1).argmax())])
        return chosen

    def of_same_tags(self) -> list[str]:
        """The report of the nearest image with the same tags, or of the nearest of all."""
        return [
            self.texts[next((row for row in order if self.tags[row] == tags), order[0])]
            for order, tags in zip(self.order, self.true_tags, strict=True)
        ]

    def best(self) -> list[str]:
        """The training report of the highest CIDEr against the truth."""
        scores = (self.reward([truth] * len(self.texts), self.texts) for truth in self.truth)
        return [self.texts[int(each.argmax())] for each in scores]

    def ways(self) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        yield "nearest by pixels", lambda: self.by_pixels
        yield "nearest by features", partial(self.consensus, 1)
        for count in CONSENSUS:
            yield f"consensus of the {count} nearest", partial(self.consensus, count)
        yield "nearest with the true tags", self.of_same_tags
        yield "best of all training reports", self.best


def main(run: str, split_name: str = "test") -> None:
    retrieval = Retrieval(RunFolder(as_path(run)), split_name)
    metrics = [metric for metric in scored_metrics() if metric.key in SHOWN]
    print(f"{split_name} split, {len(retrieval.truth)} images", *SHOWN, sep=" | ")
    for name, way in retrieval.ways():
        texts = way()
        tags = [list(each) for each in retrieval.true_tags]
        sentences = [[text] for text in texts]
        predictions = Predictions(retrieval.truth, texts, sentences, tags, tags, ())
        scores = score_split(predictions, metrics).scores
        print(name, *(METRICS[key].format(scores[key]) for key in SHOWN), sep=" | ", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
