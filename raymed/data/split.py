"""Split protocols: assigning images to training, validation or test."""

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
PAPER_IMAGES = 500
"""Images in each of validation and test, in the protocol of the paper."""

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
"""A split's name in a table or split file, in lower case -> the split."""
_IU_STUDY = re.compile(r"CXR\d+(?=_)")


@dataclass(frozen=True)
class Leakage:
    """Test images whose study also has an image in training."""

    leaked: int
    test_images: int

    @property
    def share(self) -> float:
        """Share of the test images that leaked (0 to 1)."""
        return self.leaked / max(1, self.test_images)


def by_study(studies: Sequence[str], seed: int) -> list[str]:
    """Split so that no study is in two splits, with about 10 % of the images in val and test each.

    Each split gets at least one study. The result depends on the studies and the seed, but not on
    the order of the images.

    Args:
        studies: The study of each image.
        seed: Seed of the shuffle.

    Raises:
        UsageError: There are fewer than three studies.
    """
    image_counts: dict[str, int] = dict.fromkeys(sorted(studies), 0)
    for study in studies:
        image_counts[study] += 1
    if len(image_counts) < len(SPLITS):
        raise UsageError(
            f"split protocol `study` needs at least 3 studies, but there are {len(image_counts)}: "
            "add studies, or name the split of each image in a column and use protocol `given`"
        )
    shuffled = list(image_counts)
    np.random.default_rng(seed).shuffle(shuffled)
    target = round(len(studies) / 10)
    split_of = {}
    for name, reserved_studies in (("test", 2), ("val", 1)):
        size = 0
        while size == 0 or (size < target and len(shuffled) > reserved_studies):
            study = shuffled.pop()
            split_of[study] = name
            size += image_counts[study]
    return [split_of.get(study, "train") for study in studies]


def by_image(image_count: int, seed: int) -> list[str]:
    """Split as in the paper: 500 random images for validation and 500 for test.

    Raises:
        UsageError: There are no more than 1,000 images.
    """
    if image_count <= 2 * PAPER_IMAGES:
        raise UsageError(
            f"split protocol `paper` needs {PAPER_IMAGES} images for validation and "
            f"{PAPER_IMAGES} for test, but there are only {image_count} images: use protocol "
            "`study`"
        )
    splits = np.array(["train"] * image_count)
    drawn = np.random.default_rng(seed).permutation(image_count)
    splits[drawn[:PAPER_IMAGES]] = "val"
    splits[drawn[PAPER_IMAGES : 2 * PAPER_IMAGES]] = "test"
    return splits.tolist()


def split_named(name: str) -> str | None:
    """Return train, val or test for one of its common names, in any case; None if unknown."""
    return _ALIASES.get(name.strip().lower())


def unknown_split(name: str, where: str) -> UsageError:
    """Return the error for an unknown split name; ``where`` is its location, as in a message."""
    return UsageError(
        f"{where}: unknown split {name!r}; it must be train (or training), val (validation, "
        "validate, valid, dev) or test (testing), in any case, or empty to leave the image out. "
        "Rename it, or use split=study, which ignores these names"
    )


def as_given(image_ids: Sequence[str], given: Sequence[str | None]) -> list[str | None]:
    """Split as the source does; None for an image without a split.

    Raises:
        UsageError: The source names no split at all, or a name is unknown to `split_named`.
    """
    if not any(given):
        raise UsageError(
            "split protocol `given` needs a source that names the split of each image, but this "
            "one names none: add a `split` column, or use protocol `study`"
        )
    splits: list[str | None] = []
    for image_id, value in zip(image_ids, given, strict=True):
        name = split_named(value) if value else None
        if value and name is None:
            raise unknown_split(value, f"image {image_id}")
        splits.append(name)
    return splits


def by_file(
    image_ids: Sequence[str], studies: Sequence[str], listed: Mapping[str, str]
) -> list[str | None]:
    """Split according to a split file; None for an image that it does not list.

    Args:
        image_ids: The id of each image.
        studies: The study of each image, which may be listed in place of the image.
        listed: Id -> split, from `read_split_file`.

    Raises:
        UsageError: The file lists none of the images.
    """
    splits = [
        listed.get(image_id, listed.get(study))
        for image_id, study in zip(image_ids, studies, strict=True)
    ]
    if not any(splits):
        raise UsageError(
            f"the split file lists none of the {len(splits):,} usable images: its ids look like "
            f"{next(iter(listed), 'none')!r}, but an image here is {image_ids[0]!r} of study "
            f"{studies[0]!r}. Use the split file of this dataset"
        )
    return splits


def read_split_file(path: Path) -> dict[str, str]:
    """Read a split file, as used by R2Gen and later papers: id -> train, val or test.

    The file is JSON, ``{"train": [...], "val": [...], "test": [...]}``, with any list names that
    `split_named` knows. An item is an id, or an object with an ``id`` as in R2Gen's
    ``annotation.json``. A list with another name is used if all its objects name the same split
    as their ``split``. An id names an image, a study, or a series of an IU X-Ray study
    (``CXR2384_IM-0942`` is study CXR2384). Numeric ids are read as in a table; missing ids are
    skipped.

    Raises:
        UsageError: It is not such a file, or an id is in two splits.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        lists: dict[str, list[Any]] = {}
        for name, items in content.items():
            split = split_named(name) or _split_of_records(items)
            if split in lists:
                raise UsageError(f"{path}: split {split} occurs twice, the second time as {name}")
            if split is not None:
                lists[split] = items
        ids = {split: [_listed_id(item) for item in lists[split]] for split in SPLITS}
        split_of: dict[str, str] = {}
        for split in SPLITS:
            for listed_id in filter(None, ids[split]):
                match = _IU_STUDY.match(listed_id)
                key = match[0] if match else listed_id
                if split_of.setdefault(key, split) != split:
                    raise UsageError(f"{path}: {listed_id} is in both {split_of[key]} and {split}")
        return split_of
    except OSError as error:
        raise UsageError(f"{path}: cannot read the split file: {error.strerror}") from error
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a split file: it must be a JSON object with the lists train, val and "
            f"test of ids, or of objects with an `id` ({type(error).__name__}: {error})"
        ) from error


def _split_of_records(items: Any) -> str | None:
    """Return the one split that all records of a list name; None if it is no such list."""
    records = items if isinstance(items, list) else []
    named = {record.get("split") if isinstance(record, dict) else None for record in records}
    return split_named(str(named.pop())) if len(named) == 1 else None


def _listed_id(item: Any) -> str:
    listed_id = item["id"] if isinstance(item, dict) else item
    if isinstance(listed_id, list | dict):
        raise TypeError(f"an id must be text or a number, not {listed_id!r}")
    return cells.identifier(listed_id)


def coverage(listed: Mapping[str, str], found: Collection[str], prepared: Collection[str]) -> str:
    """Describe how many ids of a split file were found and prepared; "" without a split file.

    Args:
        listed: Id -> split, from `read_split_file`.
        found: Ids of the images and studies in the source.
        prepared: Ids of those in the prepared dataset.
    """
    ids_of = {name: [each for each, of in listed.items() if of == name] for name in SPLITS}
    return ", ".join(
        f"{name} {len(ids):,} ids ({sum(each in found for each in ids):,} found, "
        f"{sum(each in prepared for each in ids):,} prepared)"
        for name, ids in ids_of.items()
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
    """Split by a protocol, and return the protocol that was used.

    ``auto`` is ``given`` if the source names the split of any image, else ``study``.

    Args:
        protocol: ``auto``, ``study``, ``paper``, ``given`` or ``r2gen``.
        image_ids: The id of each image.
        studies: The study of each image.
        given: The split that the source names for each image, if it does.
        seed: Seed of the random protocols.
        listed: Id -> split, for ``r2gen``.

    Raises:
        UsageError: Whatever the function of the protocol raises.
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
    pairs = list(zip(studies, splits, strict=True))
    trained = {study for study, split in pairs if split == "train"}
    tested = [study for study, split in pairs if split == "test"]
    return Leakage(sum(study in trained for study in tested), len(tested))
