"""The statistics of section 4.1 of the paper, and of what is left out of the reports."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from rich.table import Table

from raymed.data.text import Text
from raymed.sections import GenerationConfig

TOP_WORDS = 1000
"""Size of the paper's vocabulary, the most frequent words."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of image-report pairs; a report is counted once per image."""

    images: int
    studies: int
    reports: int
    """Distinct pairs of study and report, for reports with at least one sentence."""
    unique_tags: int
    tags_per_image: float
    """In the source, tags that differ only in case count separately, as in the paper."""
    sentences_per_image: float
    words_per_sentence: float
    unique_words: int
    top_words_share: float
    """Share of word occurrences covered by the 1,000 most frequent words (0 to 1)."""

    @property
    def words_per_image(self) -> float:
        """Mean length of an image's report, in words."""
        return self.sentences_per_image * self.words_per_sentence


PAPER: Mapping[str, Mapping[str, float]] = {
    "iu-xray": {
        "images": 7470,
        "unique_tags": 572,
        "tags_per_image": 2.2,
        "sentences_per_image": 5.7,
        "words_per_sentence": 6.5,
        "unique_words": 1915,
        "top_words_share": 0.99,
    },
    "peir-gross": {
        "images": 7442,
        "unique_tags": TOP_WORDS,
        "sentences_per_image": 1,
        "words_per_image": 12.0,
        "unique_words": 4452,
    },
}
"""Source -> its statistics in section 4.1 of the paper."""

_ROWS = [field.name for field in fields(Statistics)]
_ROWS.insert(_ROWS.index("words_per_sentence") + 1, "words_per_image")


class Counts:
    """Accumulates statistics, one image at a time."""

    def __init__(self) -> None:
        self.tags: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self._images = 0
        self._sentences = 0
        self._studies: set[str] = set()
        self._reports: set[int] = set()

    def add(self, study: str, sentences: Iterable[str], tags: Iterable[str]) -> None:
        """Add one image: its study, the sentences of its report (words and spaces) and its tags."""
        sentences = list(sentences)
        self._images += 1
        self._sentences += len(sentences)
        self._studies.add(study)
        if sentences:
            self._reports.add(hash((study, *sentences)))
        self.tags.update(tags)
        for sentence in sentences:
            self.words.update(sentence.split())

    def statistics(self) -> Statistics:
        """Return the statistics of everything added; the mean of nothing is 0."""
        words = self.words.total()
        top = sum(count for _, count in self.words.most_common(TOP_WORDS))
        return Statistics(
            images=self._images,
            studies=len(self._studies),
            reports=len(self._reports),
            unique_tags=len(self.tags),
            tags_per_image=self.tags.total() / max(1, self._images),
            sentences_per_image=self._sentences / max(1, self._images),
            words_per_sentence=words / max(1, self._sentences),
            unique_words=len(self.words),
            top_words_share=top / max(1, words),
        )


@dataclass(frozen=True)
class LeftOut:
    """What preprocessing and the default limits leave out of the reports, as shares (0 to 1)."""

    tokens: float
    """Share of the tokens that are dropped because they are not words; punctuation not counted."""
    frequent: dict[str, float]
    """The most frequent dropped tokens -> share of all tokens; see `raymed.data.text`."""
    sentences: float
    """Share of the sentences beyond the first `max_sentences` of a report."""
    words: float
    """Share of the words in such sentences or beyond the first `max_words` of a sentence."""
    max_sentences: int
    max_words: int

    def lines(self) -> list[str]:
        """Describe what is left out; empty if nothing is."""
        lines = []
        if self.tokens:
            most = ", ".join(f"{token} {share:.1%}" for token, share in self.frequent.items())
            lines.append(f"Dropped: {self.tokens:.1%} of the tokens are not words ({most})")
        if self.words:
            lines.append(
                f"Beyond the default limits (generation.max_sentences={self.max_sentences}, "
                f"generation.max_words={self.max_words}): {self.sentences:.1%} of the sentences, "
                f"{self.words:.1%} of the words; training ignores them unless you raise the limits"
            )
        return lines


class LeftOutCounts:
    """Accumulates what is left out, one report at a time."""

    SHOWN = 5
    KEPT = 10_000
    """Distinct dropped tokens to count; the rarest are forgotten once there are twice as many."""

    def __init__(self) -> None:
        self._limits = GenerationConfig()
        self._dropped: Counter[str] = Counter()
        self._sums = dict.fromkeys(("dropped", "sentences", "late", "words", "kept"), 0)

    def add(self, text: Text) -> None:
        """Add the preprocessed report of one image."""
        lengths = [sentence.count(" ") + 1 for sentence in text.sentences]
        self._sums["dropped"] += len(text.dropped)
        self._sums["sentences"] += len(lengths)
        self._sums["late"] += max(0, len(lengths) - self._limits.max_sentences)
        self._sums["words"] += sum(lengths)
        learned = lengths[: self._limits.max_sentences]
        self._sums["kept"] += sum(min(length, self._limits.max_words) for length in learned)
        self._dropped.update(text.dropped)
        if len(self._dropped) > 2 * self.KEPT:
            self._dropped = Counter(dict(self._dropped.most_common(self.KEPT)))

    def shares(self) -> LeftOut:
        """Return the shares over everything added; a share of nothing is 0."""
        sums = self._sums
        tokens = max(1, sums["words"] + sums["dropped"])
        frequent = list(by_frequency(self._dropped).items())[: self.SHOWN]
        return LeftOut(
            tokens=sums["dropped"] / tokens,
            frequent={token: count / tokens for token, count in frequent},
            sentences=sums["late"] / max(1, sums["sentences"]),
            words=(sums["words"] - sums["kept"]) / max(1, sums["words"]),
            max_sentences=self._limits.max_sentences,
            max_words=self._limits.max_words,
        )


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Sort counts in descending order, ties alphabetically."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def table(columns: Mapping[str, Statistics], source: str) -> Table:
    """Return a table for the terminal, beside the statistics of the paper if it has them.

    Args:
        columns: Column title -> statistics.
        source: Name of the source, a key of `PAPER` if the paper has its statistics.
    """
    paper = PAPER.get(source, {})
    shown = Table(title="Statistics, counted over images")
    shown.add_column("")
    for title in (*columns, *(["paper"] if paper else [])):
        shown.add_column(title, justify="right")
    for name in _ROWS:
        cells = [_cell(name, getattr(statistics, name)) for statistics in columns.values()]
        if paper:
            cells.append(_cell(name, paper[name]) if name in paper else "")
        title = "covered by the top 1,000" if name == "top_words_share" else name.replace("_", " ")
        shown.add_row(title, *cells)
    return shown


def _cell(name: str, value: float) -> str:
    if name == "top_words_share":
        return f"{value:.1%}"
    return f"{value:.1f}" if "_per_" in name else f"{value:,}"
