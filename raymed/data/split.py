"""Split protocols: which image is for training, validation or test."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymed.data import cells
from raymed.errors import UsageError

SPLITS = ("train", "val", "test")
PROTOCOLS = ("auto", "study", "paper", "given", "r2gen")
PAPER_IMAGES = 500
"""Images for validation, and as many for test, in the paper's protocol."""

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""As a table's column or a split file may name it, in lower case -> the split."""
_IU_STUDY = re.compile(r"CXR\d+(?=_)")


@dataclass(frozen=True)
class Leakage:
    """Test images whose study also has an image in training."""

    images: int
    test_images: int

    @property
    def share(self) -> float:
        """Leaked share of the test images (0 to 1)."""
        return self.images / max(1, self.test_images)


def by_study(studies: Sequence[str], seed: int) -> list[str]:
    """Split with no study on two sides: about 10 % of the images each for val and test.

    Each split gets at least one study. The result depends on the studies and the seed, not on
    the order of the images.

    Args:
        studies: the study of each image.

    Raises:
        UsageError: fewer than three studies.
    """
    images: dict[str, int] = dict.fromkeys(sorted(studies), 0)
    for study in studies:
        images[study] += 1
    if len(images) < len(SPLITS):
        raise UsageError(
            f"split protocol `study` needs at least 3 studies, and there are {len(images)}: add "
            "studies, or name the split of each image in a column and use protocol `given`"
        )
    shuffled = list(images)
    np.random.default_rng(seed).shuffle(shuffled)
    target = round(len(studies) / 10)
    side = {}
    for name, studies_after in (("test", 2), ("val", 1)):
        taken = 0
        while taken == 0 or (taken < target and len(shuffled) > studies_after):
            study = shuffled.pop()
            side[study] = name
            taken += images[study]
    return [side.get(study, "train") for study in studies]


def by_image(images: int, seed: int) -> list[str]:
    """Split as the paper does: 500 images for validation and 500 for test, at random.

    Raises:
        UsageError: no more than 1,000 images.
    """
    if images <= 2 * PAPER_IMAGES:
        raise UsageError(
            f"split protocol `paper` takes {PAPER_IMAGES} images for validation and "
            f"{PAPER_IMAGES} for test, and there are only {images} images: use protocol `study`"
        )
    splits = np.array(["train"] * images)
    drawn = np.random.default_rng(seed).permutation(images)
    splits[drawn[:PAPER_IMAGES]] = "val"
    splits[drawn[PAPER_IMAGES : 2 * PAPER_IMAGES]] = "test"
    return splits.tolist()


def side_of(name: str) -> str | None:
    """Return train, val or test for a split as people name it, in any case; None for another."""
    return _ALIASES.get(name.strip().lower())


def unknown_split(name: str, where: str) -> UsageError:
    """The error for a name of no split; ``where`` it stands, such as ``image 1.png``."""
    return UsageError(
        f"{where}: split is {name!r}; it must be train (or training), val (validation, validate, "
        "valid, dev) or test (testing), in any case, or empty where the image is to be left out. "
        "Rename it; or draw a split with split=study, which leaves these names alone"
    )


def as_given(image_ids: Sequence[str], given: Sequence[str | None]) -> list[str | None]:
    """Split as the source itself says; None where it says nothing.

    Raises:
        UsageError: the source names no split at all, or a value is none that `side_of` knows.
    """
    if not any(given):
        raise UsageError(
            "split protocol `given` needs a source that names the split of each image, and this "
            "one names none: add a `split` column, or use protocol `study`"
        )
    splits: list[str | None] = []
    for image_id, value in zip(image_ids, given, strict=True):
        side = side_of(value) if value else None
        if value and side is None:
            raise unknown_split(value, f"image {image_id}")
        splits.append(side)
    return splits


def by_file(
    image_ids: Sequence[str], studies: Sequence[str], listed: Mapping[str, str]
) -> list[str | None]:
    """Split as a split file says; None for an image that it lists by neither image nor study.

    Args:
        listed: id -> split, from :func:`read_split_file`.

    Raises:
        UsageError: the file lists none of the images.
    """
    splits = [
        listed.get(image_id, listed.get(study))
        for image_id, study in zip(image_ids, studies, strict=True)
    ]
    if not any(splits):
        raise UsageError(
            f"the split file lists none of the {len(splits):,} images that could be used: its ids "
            f"are like {next(iter(listed), 'none')!r}, and an image here is {image_ids[0]!r} of "
            f"study {studies[0]!r}. Take the split file of this dataset"
        )
    return splits


def read_split_file(path: Path) -> dict[str, str]:
    """Read the split that R2Gen and later papers use: id -> train, val or test.

    The file is JSON, ``{"train": [...], "val": [...], "test": [...]}``, each list under any name
    that `side_of` knows. An item is an id, or an object with an ``id`` as in R2Gen's
    ``annotation.json``; an id is an image's, a study's, or an IU X-Ray study's with one of its
    series (``CXR2384_IM-0942`` is study CXR2384). Numbers are ids as in a table; what is missing
    is left out.

    Raises:
        UsageError: it is not such a file, or one id is on two sides.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        named: dict[str, list[Any]] = {}
        for name, items in content.items():
            side = side_of(name)
            if side in named:
                raise UsageError(f"{path}: split {side} is there twice, the second time as {name}")
            if side is not None:
                named[side] = items
        listed = {side: [_listed_id(item) for item in named[side]] for side in SPLITS}
        sides: dict[str, str] = {}
        for name, ids in listed.items():
            for listed_id in filter(None, ids):
                match = _IU_STUDY.match(listed_id)
                key = match[0] if match else listed_id
                if sides.setdefault(key, name) != name:
                    raise UsageError(f"{path}: {listed_id} is in both {sides[key]} and {name}")
        return sides
    except OSError as error:
        raise UsageError(f"{path}: cannot read the split file: {error.strerror}") from error
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a split file: it must be a JSON object with the lists train, val and "
            f"test of ids, or of objects with an `id` ({type(error).__name__}: {error})"
        ) from error


def _listed_id(item: Any) -> str:
    listed_id = item["id"] if isinstance(item, dict) else item
    if isinstance(listed_id, list | dict):
        raise TypeError(f"an id is text or a number, not {listed_id!r}")
    return cells.identifier(listed_id)


def coverage(listed: Mapping[str, str], found: Collection[str], prepared: Collection[str]) -> str:
    """Say of each split how many ids a split file lists, and what became of them; "" without one.

    Args:
        listed: id -> split, from :func:`read_split_file`.
        found: ids of the images and studies that the source has.
        prepared: those of them in the prepared dataset.
    """
    counts = {
        side: [listed_id for listed_id, of in listed.items() if of == side] for side in SPLITS
    }
    return ", ".join(
        f"{side} {len(ids):,} ids ({sum(i in found for i in ids):,} found, "
        f"{sum(i in prepared for i in ids):,} prepared)"
        for side, ids in counts.items()
        if listed
    )


def assign(
    protocol: str,
    image_ids: Sequence[str],
    studies: Sequence[str],
    given: Sequence[str | None],
    *,
    seed: int,
    listed: Mapping[str, str],
) -> tuple[str, Sequence[str | None]]:
    """Split by a protocol of `PROTOCOLS`, and say which was followed.

    ``auto`` is ``given`` where the source names the split of any image, else ``study``.

    Args:
        given: the split that the source names, of each image.
        seed: of the random protocols.
        listed: id -> split, for ``r2gen``.

    Raises:
        UsageError: as the protocol's function raises it.
    """
    if protocol == "auto":
        protocol = "given" if any(given) else "study"
    if protocol == "study":
        return protocol, by_study(studies, seed)
    if protocol == "paper":
        return protocol, by_image(len(image_ids), seed)
    if protocol == "given":
        return protocol, as_given(image_ids, given)
    return protocol, by_file(image_ids, studies, listed)


def leakage(studies: Sequence[str], splits: Sequence[str | None]) -> Leakage:
    """Count the test images whose study also has an image in training."""
    sides = list(zip(studies, splits, strict=True))
    trained = {study for study, split in sides if split == "train"}
    tested = [study for study, split in sides if split == "test"]
    return Leakage(sum(study in trained for study in tested), len(tested))
