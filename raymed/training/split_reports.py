"""Generating the reports of a split's images, batch by batch."""

from collections.abc import Iterator

import numpy as np
import torch

from raymed.config import Config
from raymed.data.batches import TokenisedSplit, on_device
from raymed.generation import Report, add_attention, generate, override_top_tags
from raymed.image_tensors import Images
from raymed.model.system import System
from raymed.training.log import Sample

SAMPLES = 3
"""Examples whose reports are shown after an epoch, the first ones of the validation split."""


def write_reports(
    model: System, split: TokenisedSplit, rows: np.ndarray, config: Config
) -> Iterator[tuple[int, Report]]:
    """Generate the report of each of a split's ``rows``, as (row, report)."""
    model.eval()
    for batch_rows, images in image_batches(split, rows, config.training.batch_size, model.device):
        generated = generate(model, images, config.generation)
        yield from zip(batch_rows, generated.reports(split.vocabulary), strict=True)


def sample_reports(model: System, split: TokenisedSplit, config: Config) -> list[Sample]:
    """The reports of a split's first few examples, to be shown beside the ground truth."""
    model.eval()
    rows = np.arange(min(SAMPLES, len(split)))
    samples = []
    for batch_rows, images in image_batches(split, rows, config.training.batch_size, model.device):
        with override_top_tags(model, config.model.top_tags):
            generated = add_attention(model, generate(model, images, config.generation))
        reports = generated.reports(split.vocabulary)
        pictures = split.split.pictures(np.array(batch_rows))
        for number, (row, report) in enumerate(zip(batch_rows, reports, strict=True)):
            alpha = generated.reading.alpha_of(number)
            sample = Sample(
                name=split.split.image_ids[row],
                images=pictures[number],
                report=report,
                alpha=None if alpha is None else alpha.float().cpu().numpy(),
                truth=split.split.sentences[row],
                tags=split.split.tags[row],
            )
            samples.append(sample)
    return samples


def image_batches(
    split: TokenisedSplit, rows: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], Images]]:
    """A split's ``rows`` in batches: their numbers, and their images or features on ``device``."""
    for start in range(0, len(rows), batch_size):
        batch_rows = rows[start : start + batch_size]
        yield batch_rows.tolist(), on_device(split.images(batch_rows), device)
