"""Phantom studies of one to three images that share a report."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from raymed.data.examples import Example
from raymed.data.schema import DatasetInfo
from raymed.data.sources.phantom import draw
from tests.support.prepared import prepare_examples


def films_of_studies(count: int) -> Iterator[Example]:
    """``count`` studies; study k has 1 + k mod 3 images: as drawn, upside down, and inverted."""
    for number, film in enumerate(draw(count, seed=0, image_size=32)):
        pictures = (film.image, film.image[::-1].copy(), 255 - film.image)
        for place, picture in enumerate(pictures[: 1 + number % 3]):
            yield replace(film, image_id=f"{film.study}-{place}.png", image=picture, findings=())


def prepare_studies(out: Path, count: int) -> DatasetInfo:
    """Prepare them; no study is in two splits."""
    return prepare_examples(
        films_of_studies(count), out, source="table", image_size=32, split="study"
    )
