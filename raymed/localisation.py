"""Scores of attention: is it on the finding that the sentence is about?

Where the location of every finding is known, as on the phantom, a sentence's strongest region
either hits the finding or misses it (the pointing game of Zhang et al. 2016), and the tag of
strongest semantic attention is either the finding's or another.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Finding
from raymed.errors import UsageError
from raymed.metrics.findings import named_findings
from raymed.prediction import ReportGenerator
from raymed.progress import track
from raymed.provenance import KEY, made_from, refuse_to_overwrite
from raymed.reports.attended import AttendedSentence
from raymed.storage import AnyPath, atomic_write_text, reason
from raymed.training.checkpoint import Checkpoint

ATTENTION_FILE = "attention.json"


@dataclass(frozen=True)
class AttentionScores:
    """Over a split's abnormal sentences: those that name a finding and have no word of normality.

    Attributes:
        sentences: The number of these sentences.
        right: The share that name a finding of the image; all other shares are over these.
        region: The share whose strongest region is on the finding; None without visual attention.
        region_chance: The same for a random region.
        region_fixed: The same for the single region that scores best over all images.
        tag: The share whose strongest tag is the finding's; None without semantic attention.
        tag_chance: The same for a random one of the attended tags.
    """

    sentences: int
    right: float | None = None
    region: float | None = None
    region_chance: float | None = None
    region_fixed: float | None = None
    tag: float | None = None
    tag_chance: float | None = None


def measure_attention(
    checkpoint: Checkpoint, config: Config, split_name: str, out: AnyPath
) -> AttentionScores | None:
    """Write the reports of a split and save the scores of their attention in ``out``.

    Returns:
        The scores; None if the dataset has no finding of known location, or if the run reads
        several images of a study, of which a sentence may mean any.

    Raises:
        UsageError: ``out`` cannot be written, or has scores made from something else.
    """
    dataset = PreparedDataset.open(config.data.path)
    split = dataset.split(split_name)
    if config.data.images_per_study > 1 or not any(split.findings):
        return None
    record = made_from(checkpoint, config, dataset, split_name)
    refuse_to_overwrite(out, (ATTENTION_FILE,), record)
    report = ReportGenerator(checkpoint, config.generation)
    size = config.training.batch_size
    batches = np.array_split(np.arange(len(split)), -(-len(split) // size))
    reports = [
        written.sentences
        for rows in track(batches, "writing reports with attention, batches", len(batches))
        for written in report(split.pictures(rows))
    ]
    scores = attention_scores(reports, split.findings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        content = {**asdict(scores), KEY: record}
        atomic_write_text(out / ATTENTION_FILE, json.dumps(content, indent=1))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    return scores


def attention_scores(
    reports: Sequence[Sequence[AttendedSentence]], findings: Sequence[Sequence[Finding]]
) -> AttentionScores:
    """Score the attention of generated reports against the images' findings.

    Args:
        reports: The attended sentences of each image's report.
        findings: Each image's findings, with their locations.
    """
    names = {finding.tag for image in findings for finding in image}
    written, hits, tag_hits, tag_chances = 0, [], [], []
    right = 0
    for sentences, present in zip(reports, findings, strict=True):
        for sentence in sentences:
            stated = named_findings(sentence.text, names)
            if not stated:
                continue
            written += 1
            named = [one for one in present if one.tag in stated]
            if not named:
                continue
            right += 1
            if sentence.alpha is not None:
                on_finding = np.any(
                    [covered(one, sentence.alpha.shape[1:]) for one in named], axis=0
                )
                hits.append((sentence.alpha.argmax(), on_finding.flatten()))
            if sentence.tags:
                tags = [tag for tag, _ in sentence.tags]
                strongest = max(sentence.tags, key=lambda pair: pair[1])[0]
                wanted = {one.tag for one in named}
                tag_hits.append(strongest in wanted)
                tag_chances.append(len(wanted.intersection(tags)) / len(tags))
    if not written:
        return AttentionScores(0)
    masks = np.array([mask for _, mask in hits])
    return AttentionScores(
        sentences=written,
        right=right / written,
        region=float(np.mean([mask[cell] for cell, mask in hits])) if hits else None,
        region_chance=float(masks.mean()) if hits else None,
        region_fixed=float(masks.mean(axis=0).max()) if hits else None,
        tag=float(np.mean(tag_hits)) if tag_hits else None,
        tag_chance=float(np.mean(tag_chances)) if tag_hits else None,
    )


def covered(finding: Finding, grid: tuple[int, ...]) -> np.ndarray:
    """The regions of a grid [h, w] that overlap the finding's box: bool [h, w]."""
    # A region ends exactly where the next one begins, which sums of fractions would not ensure.
    rows, columns = (np.arange(size + 1) / size for size in grid)
    in_rows = (rows[:-1] < finding.bottom) & (rows[1:] > finding.top)
    in_columns = (columns[:-1] < finding.right) & (columns[1:] > finding.left)
    mask: np.ndarray = in_rows[:, None] & in_columns[None, :]
    return mask
