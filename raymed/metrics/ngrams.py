"""n-grams of any number of texts in constant memory.

An n-gram is a 64-bit key, so texts are counted as arrays, a few hundred at a time. How many texts
have an n-gram is looked up in the sorted keys of all texts, which lie in a memory-mapped temporary
file (about a kilobyte for a report of 40 words).
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from raymed.errors import UsageError
from raymed.storage import reason

LONGEST = 4
"""CIDEr counts n-grams of 1 to 4 words."""
CHUNK = 512
"""Texts counted at a time."""
_ODD = np.uint64(0x9E3779B97F4A7C15)

T = TypeVar("T")


class Texts(Protocol):
    """Texts that can be iterated over repeatedly; lower-case words separated by spaces."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of `CHUNK`; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def distinct(texts: Texts) -> int:
    """The number of distinct texts, whatever their spacing."""
    hashes = (hash(" ".join(text.split())) for text in texts)
    return len(np.unique(np.fromiter(hashes, np.int64, len(texts))))


class Counts(NamedTuple):
    """The n-grams of some texts, sorted by text and key; P pairs of a text and an n-gram of it."""

    text: np.ndarray
    """int64 [P]: the text's index."""
    key: np.ndarray
    """uint64 [P]."""
    words: np.ndarray
    """int64 [P]: n."""
    times: np.ndarray
    """int64 [P]: how often the n-gram occurs in the text."""

    @property
    def part(self) -> np.ndarray:
        """int64 [P]: index of the text's vector of n-grams of n words among all these."""
        return self.text * LONGEST + self.words - 1

    def lengths(self, texts: int) -> np.ndarray:
        """The number of 2-grams of each text, which pycocoevalcap uses as its length."""
        return np.bincount(self.text, self.times * (self.words == 2), texts)

    def norms(self, weights: np.ndarray, texts: int) -> np.ndarray:
        """The Euclidean norm of each part, float64 [texts * LONGEST], of weights [P]."""
        return np.sqrt(np.bincount(self.part, weights**2, texts * LONGEST))


class NGrams:
    """Keys of n-grams: equal for equal n-grams of all texts counted by one object."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def count(self, texts: Iterable[str]) -> Counts:
        """Count the n-grams of up to `LONGEST` words of each text."""
        words = [text.split() for text in texts]
        numbers = self._numbers
        number = np.array(
            [numbers.setdefault(word, len(numbers)) for of_text in words for word in of_text],
            np.uint64,
        )
        text = np.repeat(np.arange(len(words)), [len(of_text) for of_text in words])
        single = _mixed(number + np.uint64(1))
        keys, owners, sizes = [single], [text], [np.ones(len(text), np.int64)]
        key = single
        for n in range(2, LONGEST + 1):
            # The n-gram that begins at each word, even if it extends into the next text.
            key = _mixed(key[:-1] * _ODD + single[n - 1 :])
            within = text[: len(key)] == text[n - 1 :]
            keys.append(key[within])
            owners.append(text[: len(key)][within])
            sizes.append(np.full(len(keys[-1]), n))
        key, owner, size = map(np.concatenate, (keys, owners, sizes))
        order = np.lexsort((key, owner))
        key, owner, size = key[order], owner[order], size[order]
        new = np.ones(len(key), bool)
        new[1:] = (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])
        first = np.flatnonzero(new)
        return Counts(owner[first], key[first], size[first], np.diff(first, append=len(key)))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers evenly, each number to one of its own (splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class Frequencies:
    """The document frequencies of n-grams in some texts.

    Raises:
        UsageError: The disk of the temporary files is full.
    """

    def __init__(self, ngrams: NGrams, texts: Texts) -> None:
        self._unseen = np.log(max(1, len(texts)))
        keys = (ngrams.count(chunk).key for chunk in chunks(texts))
        self._keys = mapped(keys, np.dtype(np.uint64))
        self._keys.sort()

    def __len__(self) -> int:
        """The number of the texts' n-grams, each counted once per text."""
        return len(self._keys)

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An index below ``len(self)`` for each key, unique if a text has the key, and its idf.

        The idf is log(number of texts / max(1, number of texts that have the n-gram)).
        """
        distinct, inverse = np.unique(keys, return_inverse=True)
        first = np.searchsorted(self._keys, distinct)
        frequency = np.searchsorted(self._keys, distinct, side="right") - first
        idf = self._unseen - np.log(np.maximum(1, frequency))
        return first[inverse], idf[inverse]


def mapped(arrays: Iterable[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Concatenate arrays in an unnamed, memory-mapped temporary file; the result is writable.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        with tempfile.TemporaryFile() as file:
            for array in arrays:
                file.write(array.astype(dtype, copy=False).data)
            file.flush()
            if file.tell() == 0:
                return np.empty(0, dtype)
            return np.asarray(np.memmap(file, dtype))
    except OSError as error:
        raise UsageError(
            f"{tempfile.gettempdir()}: cannot write a temporary file ({reason(error)}); free disk "
            "space there, or set TMPDIR to a folder with free space"
        ) from error
