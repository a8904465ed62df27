"""Converting words and tags to ids and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from raymed.tokens import SPECIAL, UNKNOWN


@dataclass(frozen=True)
class Vocabulary:
    """The words and tags that a model can predict; stored in every checkpoint.

    Attributes:
        words: Most frequent first; the word at position r has id r + 4 (see `raymed.tokens`).
        tags: The tag at position i has id i.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @classmethod
    def most_frequent(
        cls, counts: Mapping[str, int], tags: Sequence[str], size: int
    ) -> "Vocabulary":
        """Keep the ``size`` most frequent words of ``counts``, with ties in alphabetical order."""
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[:size]), tuple(tags))

    def __len__(self) -> int:
        """V: the number of word ids, including special tokens."""
        return len(self.words) + len(SPECIAL)

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: rank + len(SPECIAL) for rank, word in enumerate(self.words)}

    @cached_property
    def tag_ids(self) -> dict[str, int]:
        """Tag -> id."""
        return {tag: rank for rank, tag in enumerate(self.tags)}

    def encode(self, sentence: str) -> list[int]:
        """Return the word ids of a preprocessed sentence, UNKNOWN for other words."""
        return [self.word_ids.get(word, UNKNOWN) for word in sentence.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of ids, without special tokens, joined by spaces."""
        first = len(SPECIAL)
        return " ".join(self.words[i - first] for i in ids if i >= first)
