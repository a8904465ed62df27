"""Reports as R2Gen tokenises and scores them (Chen et al., EMNLP 2020): ``text=r2gen``.

These are the rules of R2Gen's published code (github.com/cuhksz-nlp/R2Gen, in the modules
``tokenizers.py`` and ``datasets.py``), which later papers share. Scores can stand beside theirs
only if the references are the same texts, so even the rules' peculiarities are kept: ``1. `` is
removed in ``T11. `` as well, an empty sentence is a full stop, and the words ``<unk>`` and ``.``
are scored like any other.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymed.data.spool import SpooledRows
from raymed.data.text import Text
from raymed.sections import DataConfig

UNKNOWN = "<unk>"
"""Stands for a rare word: in references, and as a word that a model may write."""
STOP = "."
_NUMBERS = range(2, 6)
_DELETED = str.maketrans(dict.fromkeys("\"'/\\.,?;*!%^&_+():<=>@[]{}"))
"""Hyphens and digits stay; 1.5 becomes 15."""


@dataclass(frozen=True)
class R2GenRules:
    """The rules for one of R2Gen's datasets.

    Attributes:
        dataset: R2Gen's name of it.
        min_count: Words seen less often in the training reports are `UNKNOWN`.
        max_words: Maximum words of a report, full stops included. One less than R2Gen's
            ``max_seq_length``, which counts the start token too.
        halvings: How many times each ``..`` is replaced by a single full stop.
        joins_lines: Whether line breaks become spaces, and runs of up to 64 spaces a single one.
    """

    dataset: str
    min_count: int
    max_words: int
    halvings: int
    joins_lines: bool

    def words(self, report: str) -> list[list[str]]:
        """Return the words of each sentence, the last one a full stop."""
        text = report
        if self.joins_lines:
            text = text.replace("\n", " ")
            for _ in range(6):
                text = text.replace("  ", " ")
        for _ in range(self.halvings):
            text = text.replace("..", ".")
        text = text.replace("1. ", "")
        for before in (". ", " "):
            for number in _NUMBERS:
                text = text.replace(f"{before}{number}. ", ". ")
        sentences = text.strip().lower().split(". ")
        return [[*sentence.translate(_DELETED).split(), STOP] for sentence in sentences]

    def known(self, counts: Mapping[str, int]) -> frozenset[str]:
        """Return the words that references keep, by how often the training reports have each."""
        return frozenset(word for word, count in counts.items() if count >= self.min_count)

    def preprocess(self, report: str) -> Text:
        """Return the whole report, with all its words."""
        return Text([" ".join(words) for words in self.words(report)], [])


IU_XRAY = R2GenRules("iu_xray", min_count=3, max_words=59, halvings=3, joins_lines=False)
MIMIC_CXR = R2GenRules("mimic_cxr", min_count=10, max_words=99, halvings=8, joins_lines=True)
RULES = {rules.dataset: rules for rules in (IU_XRAY, MIMIC_CXR)}


@dataclass(frozen=True)
class R2GenText:
    """How the reports of a dataset were made, as recorded in ``dataset.json``."""

    dataset: str
    """R2Gen's name of the dataset whose rules were used."""
    min_count: int
    """Words seen less often in the training reports are ``<unk>``."""
    max_words: int
    """Words of the longest report."""
    vocabulary: int
    """Distinct words that are kept, full stop included, ``<unk>`` not."""
    unknown: float
    """Share of the words of the training reports that are ``<unk>`` (0 to 1)."""
    cut: float
    """Share of the words of the training reports beyond the first `max_words` (0 to 1)."""

    def lines(self) -> list[str]:
        """Describe it."""
        lines = [
            f"Text of R2Gen ({self.dataset}), as shares of the training reports' words: "
            f"{self.unknown:.1%} are {UNKNOWN}, seen less than {self.min_count} times; "
            f"{self.cut:.1%} are cut, after the first {self.max_words} words of a report"
        ]
        size = self.vocabulary + 1
        if size > DataConfig().vocabulary:
            lines.append(f"To train on all {size:,} words, set data.vocabulary={size}")
        return lines


class R2GenRows:
    """Rows whose reports are limited to R2Gen's vocabulary and length.

    Args:
        rows: Rows with whole reports.
        rules: The rules that made them.
        training: Numbers of one row for each training report, from which words are counted.
    """

    def __init__(self, rows: SpooledRows, rules: R2GenRules, training: Iterator[int]) -> None:
        counts: Counter[str] = Counter()
        beyond = 0
        for number in training:
            words = " ".join(rows[number]["sentences"]).split()
            counts.update(words)
            beyond += max(0, len(words) - rules.max_words)
        total = max(1, counts.total())
        self._rows = rows
        self._known = rules.known(counts)
        self.info = R2GenText(
            dataset=rules.dataset,
            min_count=rules.min_count,
            max_words=rules.max_words,
            vocabulary=len(self._known),
            unknown=1 - sum(counts[word] for word in self._known) / total,
            cut=beyond / total,
        )

    def __getitem__(self, row: int) -> dict[str, Any]:
        content = self._rows[row]
        return {
            **content,
            "sentences": limited(content["sentences"], self._known, self.info.max_words),
        }

    def text(self, row: int) -> bytes:
        """Return a row as JSON; the bytes are the same in every run."""
        return json.dumps(self[row]).encode()


def limited(sentences: Sequence[str], known: Collection[str], max_words: int) -> list[str]:
    """Cut a report after ``max_words`` words, and replace those that are not known."""
    found = []
    for sentence in sentences:
        words = sentence.split()[:max_words]
        if not words:
            break
        max_words -= len(words)
        found.append(" ".join(word if word in known else UNKNOWN for word in words))
    return found


def has_only_words(text: str) -> bool:
    """Return whether a text has words alone, as these rules make them and systems write them."""
    return all(
        word in (STOP, UNKNOWN) or word == word.lower().translate(_DELETED) for word in text.split()
    )
